"""The decoder of the exact code. It has no tolerance, no certificate and no suspects: a share is right or wrong."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding.decoded import Decoded, DecodeStatus
from solon_fl.coding.decoder import Decoder
from solon_fl.coding.memory import new_memory
from solon_fl.coding.sections import Sections

from .checks import Checks
from .code import ExactCode, block_size
from .field import LARGEST, FieldArray, P, canonical, combined, halves
from .locating import lying_places

__all__ = ["ExactDecoder"]

MOST_COLUMNS = 1024  # columns combined to find liars; affects speed, never results


class ExactDecoder(Decoder):
    """Recovers a group's gradient bit for bit from shares of an `ExactCode`.

    See `Decoder` for parameters and errors; `code` is an `ExactCode`.

    Notes
    -----
    Guarantee: a gradient is returned only if all shares outside of `Decoded.different_slots` equal its shares bit for
    bit. Up to (n - k) // 2 wrong shares among n are found, whatever they hold. See docs/explanation/exact.md for the
    proofs. A share does not tell whether its node lies, or is honest and computes other bits.
    The shares and the gradient may hold NaN and infinity.

    Cost: n (n - k) multiply-adds per column in float64, two or three times that where the slots that replied are far
    apart or k > 22, plus one run of the locator per liar at most. Besides the result, some 10 MB.

    Examples
    --------
    One of four nodes flips one bit.

    >>> import torch
    >>> from solon_fl import ExactCode, ExactDecoder
    >>> code = ExactCode(group_size=4, compression=2)
    >>> gradient = torch.tensor([1.0, 2.0, -0.0, 0.5])
    >>> shares = {slot: code.encode(gradient, slot) for slot in range(4)}
    >>> shares[1] = (shares[1].view(torch.int32) ^ 1).view(torch.float32)
    >>> decoded = ExactDecoder(code, byzantine=1).decode(shares)
    >>> decoded.different_slots, decoded.error_bound
    ((1,), 0.0)
    >>> torch.equal(decoded.gradient.view(torch.int32), gradient.view(torch.int32))
    True
    """

    code: ExactCode

    def __init__(self, code: ExactCode, *, byzantine: int, stragglers: int = 0, detect_only: bool = False) -> None:
        super().__init__(code, byzantine=byzantine, stragglers=stragglers, detect_only=detect_only)

    @property
    def certificate(self) -> float:
        """0: an exact code has no noise in which a lie could hide."""
        return 0.0

    def expected_error(self, num_shares: int) -> float:
        """Return 0."""
        return 0.0

    def new_memory(self, generator: torch.Generator | None = None) -> "Memory":
        """See `Decoder.new_memory`. Columns in which shares disagreed are checked first."""
        return Memory(generator)

    def _decoding(self, rows: Mapping[int, Tensor], dim: int, sections: Sections, memory: object) -> "ExactDecoding":
        assert isinstance(memory, Memory)
        bits = {slot: row.view(torch.int32) for slot, row in rows.items() if row.dtype == torch.float32}
        return ExactDecoding(code=self.code, byzantine=self.byzantine, rows=bits, dim=dim, memory=memory)


class Memory:
    """The columns in which shares of a group disagreed, and the random generator."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        seed = None if generator is None else int(torch.randint(2**62, (1,), generator=generator, device="cpu"))
        self.random = np.random.default_rng(seed)
        self.columns: dict[int, None] = {}  # columns that disagreed; their blocks are checked first
        self.scanned = False  # whether a failed attempt has gone as far as it could
        self.wanted = 0  # with fewer shares another attempt must fail, given how many are wrong


@dataclass(frozen=True, kw_only=True)
class ExactDecoding:
    """One decode; `rows` are the shares' bits by slot, (m,) int32."""

    code: ExactCode
    byzantine: int
    rows: Mapping[int, Tensor]
    dim: int
    memory: Memory

    def decode(self, needed: int, last: bool) -> Decoded:
        """See `Decoding.decode`."""
        spare = len(self.rows) - self.code.compression
        most = min(spare // 2, len(self.rows) - needed)
        if most < 0 or (len(self.rows) < self.memory.wanted and not last):
            return self._failed(DecodeStatus.TOO_FEW_SHARES)
        found = self._gradient(most)
        if isinstance(found, int):
            wrong = min(found, spare // 2 + 1)  # beyond that, shares that look wrong may be right
            self.memory.wanted = max(needed + wrong, self.code.compression + 2 * wrong)
            more_would_do = most < min(spare // 2, self.byzantine)
            return self._failed(DecodeStatus.TOO_FEW_SHARES if more_would_do else DecodeStatus.UNDECODABLE)
        return found

    def _gradient(self, most: int) -> Decoded | int:
        """Return the gradient that all shares but at most `most` agree on.

        If more than `most` shares are wrong, return a lower bound on their number, provided that it is at most
        (n - k) // 2. The first such pass goes on to the end, and later ones start where it found disagreement, so that
        not every new share costs a full pass.
        The search proceeds block by block. Rows that agreed in earlier blocks still agree without the rows that a later
        block excludes.
        """
        length, device = self.code.share_dim(self.dim), next(iter(self.rows.values())).device
        result = new_memory(self.code.compression, length, torch.int32, device)
        block = min(block_size(len(self.rows), device), length)
        chunks = torch.split(result, block, dim=1)
        parts = {slot: torch.split(row, block) for slot, row in self.rows.items()}
        kept = _Kept(self.code, sorted(self.rows), block, device)
        fewest = len(kept.slots) - most
        known = [min(column // block, len(chunks) - 1) for column in self.memory.columns]
        for number in dict.fromkeys((*known, *range(len(chunks)))):
            while True:
                columns = kept.columns_of([parts[slot][number] for slot in kept.slots])
                wrong = kept.wrong_rows(columns, self.memory.random)
                if not wrong:
                    break
                self.memory.columns[number * block + kept.telling] = None
                right = [slot for row, slot in enumerate(kept.slots) if row not in wrong]
                if len(right) < self.code.compression or (len(right) < fewest and self.memory.scanned):
                    self.memory.scanned = True
                    return len(self.rows) - len(right)
                kept = _Kept(self.code, right, block, device)
            if len(kept.slots) >= fewest:
                kept.write_chunks(columns, chunks[number])
        slots = kept.slots
        if len(slots) < fewest:
            self.memory.scanned = True
            return len(self.rows) - len(slots)
        excluded = tuple(sorted(self.rows.keys() - set(slots)))
        return Decoded(
            gradient=result.view(-1)[: self.dim].view(torch.float32),
            status=DecodeStatus.CORRECTED if excluded else DecodeStatus.CLEAN,
            corrupt_slots=(),
            suspect_slots=(),
            different_slots=excluded,
            erased_slots=self._absent,
            residual=0.0,
            tolerance=0.0,
            error_bound=0.0,
            num_agreeing=len(slots),
        )

    def _failed(self, status: DecodeStatus) -> Decoded:
        return Decoded.failed(status, self._absent)

    @property
    def _absent(self) -> tuple[int, ...]:
        return tuple(slot for slot in range(self.code.group_size) if slot not in self.rows)


class _Kept:
    """The shares that count as right so far, at least k, with buffers for one block of their columns."""

    def __init__(self, code: ExactCode, slots: list[int], block: int, device: torch.device) -> None:
        self.slots = slots
        self.telling = 0
        self._code = code
        self._checks = Checks(code, slots, block, device) if len(slots) > code.compression else None
        self._missing = [chunk for chunk in range(code.compression) if chunk not in slots]
        self._present = [slot for slot in slots if slot < code.compression]
        if self._missing:
            self._matrix = halves(code.interpolation(slots[: code.compression], self._missing), device)
        self._bits = torch.empty(len(slots), block, dtype=torch.int32, device=device)
        self._numbers = torch.empty(len(slots), block, dtype=torch.float64, device=device)

    def columns_of(self, parts: list[Tensor]) -> Tensor:
        """Return these parts of the shares as one matrix, (n, width) int32, which is valid until the next call."""
        columns = self._bits[:, : parts[0].numel()]
        torch.stack(parts, out=columns)
        self._numbers[:, : columns.shape[1]].copy_(columns)
        return columns

    def wrong_rows(self, columns: Tensor, random: np.random.Generator) -> list[int]:
        """Return the rows that are wrong in these columns: none if all agree, all if too many are wrong.

        If any row is wrong, `telling` becomes the index of a column that shows it.
        """
        if int(columns.amax()) > LARGEST:  # no honest share has such numbers
            beyond = columns > LARGEST
            self.telling = int(beyond.any(dim=0).nonzero()[0])
            return beyond.any(dim=1).nonzero().flatten().tolist()
        if self._checks is None or self._checks.passed_by(self._numbers[:, : columns.shape[1]]):
            return []
        failing = self._checks.failing
        self.telling = int(failing.nonzero()[0])
        words = columns[:, failing].cpu().numpy().astype(np.int64) % P
        places = self._locate(_combination(words.astype(np.uint64), random))
        if not places:  # lies that cancel in the combination show in a single column
            places = self._locate(words[:, 0].astype(np.uint64))
        return places or list(range(len(self.slots)))

    def _locate(self, word: FieldArray) -> list[int] | None:
        return lying_places(word, self._code.points[self.slots], self._code.compression)

    def write_chunks(self, columns: Tensor, target: Tensor) -> None:
        """Write the gradient's k chunks in these columns, which must agree, into the target, (k, width)."""
        present = len(self._present)
        if present == self._code.compression:
            target.copy_(columns[:present])
            return
        target[self._present] = columns[:present]
        known = self._numbers[: self._code.compression, : columns.shape[1]]
        target[self._missing] = canonical(combined(self._matrix, known))


def _combination(words: FieldArray, random: np.random.Generator) -> FieldArray:
    """Return a random combination of some of the words, the columns of an (n, number) matrix."""
    chosen = random.permutation(words.shape[1])[:MOST_COLUMNS]
    factors = random.integers(P, size=len(chosen), dtype=np.uint64)
    return np.asarray((words[:, chosen] * factors % P).sum(axis=1) % P, dtype=np.uint64)
