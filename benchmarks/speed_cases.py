"""The operations that `benchmarks/speed.py` times, on a group's shares or on whole gradients, with their checks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, MultiKrum, Strategy
from torch import Tensor

from solon_fl import Code, Decoded, Decoder, ExactCode, ExactDecoder, FourierCode, RealDecoder
from solon_fl.baselines import CyclicCode, DracoDecoded, RepetitionCode
from solon_fl.coding.exact.field import FieldArray, P, lagrange
from solon_fl.coding.exact.locating import lying_places
from solon_fl.coding.sections import Sections
from solon_fl.simulations.datasets.models import build_model
from solon_fl.strategies.group import GroupRound
from solon_fl.task import SHARE
from solon_fl.wire import to_array

COPY = "copy of the shares"
MEAN = "np.mean of r gradients"


@dataclass(frozen=True)
class Operation:
    """An operation to time. `prepare` runs before it, untimed, and `check` raises if its result is wrong."""

    run: Callable[[], Any]
    check: Callable[[Any], None] = lambda _: None
    prepare: Callable[[], Any] = lambda: None


class Case:
    """A group of r nodes with a gradient of length `dim`, on a device."""

    def __init__(self, r: int, k: int, s: int, dim: int, device: str) -> None:
        self.r, self.k, self.s, self.dim = r, k, s, dim
        self.code, self.decoder = self._code_and_decoder()
        self.rng = torch.Generator().manual_seed(0)
        self.gradient = torch.randn(dim, generator=self.rng).to(device)
        # Each share has its own memory, as in replies.
        self.shares = {slot: self._share(slot) for slot in range(r)}
        self.liars = sorted(torch.randperm(r, generator=self.rng)[:s].tolist())

    def _code_and_decoder(self) -> tuple[Code, Decoder]:
        code = FourierCode(group_size=self.r, compression=self.k)
        return code, RealDecoder(code, byzantine=self.s)

    def _share(self, slot: int) -> Tensor:
        return self.code.encode(self.gradient, slot)

    def lying(self) -> dict[int, Tensor]:
        """Return the shares, with random numbers of the same scale in place of s of them."""
        share = self.shares[0]
        lies = {slot: torch.randn(share.shape, generator=self.rng).to(share) * share.std() for slot in self.liars}
        return self.shares | lies

    def coding(self) -> dict[str, Operation]:
        """Return Solon's operations and the reference operations."""
        rows = list(self.shares.values())
        target = torch.empty(self.r, rows[0].numel(), device=self.gradient.device).fill_(0)

        def copy() -> None:
            for row, share in zip(target, rows, strict=True):
                row.copy_(share)

        operations = {
            "read the gradient": Operation(self.gradient.sum),
            COPY: Operation(copy),
            "copy to new memory": Operation(lambda: [share.clone() for share in rows]),
            "encode": Operation(lambda: self.code.encode(self.gradient, self._slot)),
            "decode, nobody lies": self._decode(self.shares, []),
            "decode, s lie": self._decode(self.lying(), self.liars),
            **self._more_lies(),
            "decode, s missing": self._decode(
                {slot: share for slot, share in self.shares.items() if slot not in self.liars}, []
            ),
        }
        if self.gradient.device.type == "cpu":
            replies = [self._reply({SHARE: ArrayRecord({SHARE: to_array(share)})}) for share in rows]
            operations["a group's replies"] = Operation(lambda: self._collect(replies), self._is_average)
        return operations

    @property
    def _slot(self) -> int:
        """The slot whose encoding is timed."""
        return 1

    def _more_lies(self) -> dict[str, Operation]:
        return {}

    def _decode(self, received: dict[int, Tensor], liars: list[int]) -> Operation:
        return Operation(
            lambda: self.decoder.decode(received, dim=self.dim), lambda decoded: self.is_right(decoded, liars)
        )

    def is_right(self, decoded: Decoded, liars: list[int]) -> None:
        """Raise unless the gradient is right and exactly the liars are named."""
        assert decoded.gradient is not None, decoded
        assert decoded.corrupt_slots == tuple(liars), decoded
        error = float((decoded.gradient - self.gradient).norm())
        assert error <= min(decoded.error_bound, 1e-5 * float(self.gradient.norm())), (error, decoded)

    def averaging(self) -> Iterator[tuple[str, Operation]]:
        """Yield operations on r whole gradients of the same length, one at a time to save memory."""
        yield MEAN, self._mean()
        yield "Draco, repetition", self._repetition()
        yield "Draco, cyclic", self._cyclic()
        krum, bulyan = max(0, min(self.s, (self.r - 3) // 2)), max(0, min(self.s, (self.r - 3) // 4))  # their limits
        for name, strategy in {
            "Flower's FedAvg": FedAvg(),
            "Flower's MultiKrum": MultiKrum(num_malicious_nodes=krum, num_nodes_to_select=self.r - self.s),
            "Flower's Bulyan": Bulyan(num_malicious_nodes=bulyan),
        }.items():
            yield name, self._flower(strategy)
        with contextlib.suppress(ImportError):
            yield "byzfl's geometric median", self._median()

    def _mean(self) -> Operation:
        full = np.repeat(self.gradient.numpy()[None], self.r, axis=0)
        return Operation(lambda: full.mean(0), self._is_average)

    def _repetition(self) -> Operation:
        vectors = {node: self.gradient.clone() for node in range(2 * self.s + 1)}  # one group that tolerates s liars
        code = RepetitionCode(len(vectors), self.s)
        return Operation(lambda: code.decode(vectors), self._is_average)

    def _cyclic(self) -> Operation:
        code = CyclicCode(self.r, self.s)
        vectors = {node: self._combination(code, node) for node in range(self.r)}
        return Operation(lambda: code.decode(vectors), self._is_average)

    def _flower(self, strategy: Strategy) -> Operation:
        array, replies = to_array(self.gradient), list[Message]()

        def prepare() -> None:  # new replies each time, because Flower empties the records that it reads
            metrics = MetricRecord({"num-examples": 1})
            records = [ArrayRecord({"gradient": array}) for _ in range(self.r)]
            replies[:] = [self._reply({"arrays": record, "metrics": metrics}) for record in records]

        return Operation(lambda: self._aggregate(strategy, replies), self._is_average, prepare)

    def _median(self) -> Operation:
        import byzfl  # type: ignore[import-not-found, import-untyped, unused-ignore]

        vectors, median = self.gradient.expand(self.r, -1).contiguous(), byzfl.GeometricMedian(T=3)
        return Operation(lambda: median(vectors), self._is_average)

    def _combination(self, code: CyclicCode, node: int) -> Tensor:
        """Return a Draco node's reply if all batches have the same gradient."""
        weight = code.weights(node).sum()
        return torch.stack([self.gradient * float(weight.real), self.gradient * float(weight.imag)])

    def _reply(self, records: dict[str, Any]) -> Message:
        task = Message(RecordDict({}), dst_node_id=1, message_type="train")
        return Message(RecordDict(records), reply_to=task)

    def _collect(self, replies: list[Message]) -> Tensor | None:
        """Process a group's replies as the server does: check, read, decode, report."""
        group = GroupRound(
            group=0,
            nodes=tuple(range(1, self.r + 1)),
            byzantine=self.s,
            decoder=self.decoder,
            sections=Sections.whole(self.decoder.code.share_dim(self.dim)),
            dtype=self.gradient.dtype,
        )
        for slot, reply in enumerate(replies):
            group.receive({slot: reply})
        gradient = group.decode(last=True)
        return None if gradient is None else gradient[: self.dim]  # without the padding

    @staticmethod
    def _aggregate(strategy: Strategy, replies: list[Message]) -> np.ndarray[Any, Any]:
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        return arrays["gradient"].numpy()

    def _is_average(self, found: Tensor | np.ndarray[Any, Any] | DracoDecoded | None) -> None:
        """Raise unless the result equals the gradient. All gradients are equal, so every aggregator must return it."""
        result = found.gradient if isinstance(found, DracoDecoded) else found
        assert result is not None
        error = float((torch.as_tensor(result) - self.gradient).norm() / self.gradient.norm())
        assert error < 1e-5, error


class ExactCase(Case):
    """A `Case` with the exact code."""

    def _code_and_decoder(self) -> tuple[Code, Decoder]:
        code = ExactCode(group_size=self.r, compression=self.k)
        return code, ExactDecoder(code, byzantine=self.s)

    def _share(self, slot: int) -> Tensor:
        return super()._share(slot).clone()

    @property
    def _slot(self) -> int:
        return self.r - 1  # shares below k are views

    def _more_lies(self) -> dict[str, Operation]:
        lies = {slot: self.shares[slot].clone() for slot in self.liars}
        for lie in lies.values():
            place = int(torch.randint(lie.numel(), (), generator=self.rng))
            lie.view(torch.int32)[place] ^= 1
        return {"decode, s lie in one bit": self._decode(self.shares | lies, self.liars)}

    def is_right(self, decoded: Decoded, liars: list[int]) -> None:
        """Raise unless every bit is right and exactly the liars are named."""
        assert decoded.gradient is not None, decoded
        assert decoded.different_slots == tuple(liars), decoded
        assert torch.equal(decoded.gradient.view(torch.int32), self.gradient.view(torch.int32))

    def averaging(self) -> Iterator[tuple[str, Operation]]:
        """Yield only the average, because the other operations don't depend on the code."""
        yield MEAN, self._mean()


CASES: dict[str, type[Case]] = {"fourier": Case, "exact": ExactCase}


def locating(r: int, k: int, s: int) -> Operation:
    """Return the operation that locates s lies in one word of the exact code."""
    random = np.random.default_rng(0)
    points = np.arange(1, r + 1, dtype=np.uint64)
    terms = lagrange(points[:k], points) * random.integers(P, size=k, dtype=np.uint64) % P
    word: FieldArray = terms.sum(axis=1) % P
    liars = sorted(random.permutation(r)[:s].tolist())
    word[liars] = (word[liars] + random.integers(1, P, size=s, dtype=np.uint64)) % P

    def is_right(found: list[int] | None) -> None:
        assert found == liars, (found, liars)

    return Operation(lambda: lying_places(word, points, k), is_right)


def training() -> dict[str, Operation]:
    """Return backward passes of ResNet-18, and the encoding of its gradient."""
    model = build_model("resnet18", (3, 32, 32), 10, seed=0)
    rng = torch.Generator().manual_seed(0)

    def backward(batch: int) -> Operation:
        images, labels = torch.randn(batch, 3, 32, 32, generator=rng), torch.randint(10, (batch,), generator=rng)
        losses: list[Tensor] = []

        def forward() -> None:
            model.zero_grad()
            losses[:] = [torch.nn.functional.cross_entropy(model(images), labels)]

        return Operation(lambda: torch.autograd.backward(losses), prepare=forward)

    def encode(code: Code, slot: int) -> Operation:
        return Operation(lambda: code.encode(gradient, slot))

    gradient = torch.randn(sum(parameter.numel() for parameter in model.parameters()), generator=rng)
    return {
        "encode a share of ResNet-18, fourier code": encode(FourierCode(group_size=20, compression=10), 1),
        "encode a share of ResNet-18, exact code": encode(ExactCode(group_size=20, compression=10), 19),
        **{f"backward pass of ResNet-18, batch of {batch}": backward(batch) for batch in (32, 128)},
    }
