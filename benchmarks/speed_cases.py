"""What `benchmarks/speed.py` times: operations on a group's shares, or on whole gradients, with their checks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, MultiKrum, Strategy
from torch import Tensor

from solon_fl import Decoded, FourierCode, RealDecoder
from solon_fl.baselines import CyclicCode, DracoDecoded, RepetitionCode
from solon_fl.coding.sections import Sections
from solon_fl.strategies.group import GroupRound
from solon_fl.task import SHARE
from solon_fl.wire import to_array

COPY = "copy of the shares"


@dataclass(frozen=True)
class Operation:
    """Something to time; `prepare` comes before it, untimed, and `check` raises if what it returned is wrong."""

    run: Callable[[], Any]
    check: Callable[[Any], None] = lambda _: None
    prepare: Callable[[], Any] = lambda: None


class Case:
    """A group of r nodes with a gradient of `dim` numbers, on a device."""

    def __init__(self, r: int, k: int, s: int, dim: int, device: str) -> None:
        self.r, self.k, self.s, self.dim = r, k, s, dim
        self.code = FourierCode(group_size=r, compression=k)
        self.decoder = RealDecoder(self.code, byzantine=s)
        self.rng = torch.Generator().manual_seed(0)
        self.gradient = torch.randn(dim, generator=self.rng).to(device)
        # Each in memory of its own, as replies come.
        self.shares = {slot: self.code.encode(self.gradient, slot) for slot in range(r)}
        self.liars = sorted(torch.randperm(r, generator=self.rng)[:s].tolist())

    def lying(self) -> dict[int, Tensor]:
        """Return the shares, those of s nodes being random numbers of the right size."""
        share = self.shares[0]
        lies = {slot: torch.randn(share.shape, generator=self.rng).to(share) * share.std() for slot in self.liars}
        return self.shares | lies

    def coding(self) -> dict[str, Operation]:
        """Return what Solon does, and what it is measured against."""
        code, shares, rows = self.code, self.shares, list(self.shares.values())
        target = torch.empty(self.r, code.share_dim(self.dim), device=self.gradient.device).fill_(0)
        lying = self.lying()
        present = {slot: share for slot, share in shares.items() if slot not in self.liars}

        def copy() -> None:
            for row, share in zip(target, rows, strict=True):
                row.copy_(share)

        def decode(received: dict[int, Tensor]) -> Decoded:
            return self.decoder.decode(received, dim=self.dim)

        def is_right(decoded: Decoded, corrupt: list[int]) -> None:
            assert decoded.gradient is not None, decoded
            assert decoded.corrupt_slots == tuple(corrupt), decoded
            error = float((decoded.gradient - self.gradient).norm())
            assert error <= min(decoded.error_bound, 1e-5 * float(self.gradient.norm())), (error, decoded)

        operations = {
            "read the gradient": Operation(self.gradient.sum),
            COPY: Operation(copy),
            "copy to new memory": Operation(lambda: [share.clone() for share in rows]),
            "encode": Operation(lambda: code.encode(self.gradient, 1)),
            "decode, nobody lies": Operation(lambda: decode(shares), lambda found: is_right(found, [])),
            "decode, s lie": Operation(lambda: decode(lying), lambda found: is_right(found, self.liars)),
            "decode, s missing": Operation(lambda: decode(present), lambda found: is_right(found, [])),
        }
        if self.gradient.device.type == "cpu":
            replies = [self._reply({SHARE: ArrayRecord({SHARE: to_array(share)})}) for share in rows]
            operations["a group's replies"] = Operation(lambda: self._collect(replies), self._is_average)
        return operations

    def averaging(self) -> Iterator[tuple[str, Operation]]:
        """Yield what is done with r whole gradients of the same length, one after the other for want of memory."""
        yield "np.mean of r gradients", self._mean()
        yield "Draco, repetition", self._repetition()
        yield "Draco, cyclic", self._cyclic()
        krum, bulyan = max(0, min(self.s, (self.r - 3) // 2)), max(0, min(self.s, (self.r - 3) // 4))  # what they allow
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
        vectors = {node: self.gradient.clone() for node in range(2 * self.s + 1)}  # a group, for s liars
        code = RepetitionCode(len(vectors), self.s)
        return Operation(lambda: code.decode(vectors), self._is_average)

    def _cyclic(self) -> Operation:
        code = CyclicCode(self.r, self.s)
        vectors = {node: self._combination(code, node) for node in range(self.r)}
        return Operation(lambda: code.decode(vectors), self._is_average)

    def _flower(self, strategy: Strategy) -> Operation:
        array, replies = to_array(self.gradient), list[Message]()

        def prepare() -> None:  # Flower empties the records that it has read
            metrics = MetricRecord({"num-examples": 1})
            records = [ArrayRecord({"gradient": array}) for _ in range(self.r)]
            replies[:] = [self._reply({"arrays": record, "metrics": metrics}) for record in records]

        return Operation(lambda: self._aggregate(strategy, replies), self._is_average, prepare)

    def _median(self) -> Operation:
        import byzfl  # type: ignore[import-not-found, import-untyped, unused-ignore]

        vectors, median = self.gradient.expand(self.r, -1).contiguous(), byzfl.GeometricMedian(T=3)
        return Operation(lambda: median(vectors), self._is_average)

    def _combination(self, code: CyclicCode, node: int) -> Tensor:
        """Return what a Draco node sends if all batches have the same gradient."""
        weight = code.weights(node).sum()
        return torch.stack([self.gradient * float(weight.real), self.gradient * float(weight.imag)])

    def _reply(self, records: dict[str, Any]) -> Message:
        task = Message(RecordDict({}), dst_node_id=1, message_type="train")
        return Message(RecordDict(records), reply_to=task)

    def _collect(self, replies: list[Message]) -> Tensor | None:
        """Do with a group's replies what the server does: check, read, decode, report."""
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
        return group.decode(last=True)

    @staticmethod
    def _aggregate(strategy: Strategy, replies: list[Message]) -> np.ndarray[Any, Any]:
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        return arrays["gradient"].numpy()

    def _is_average(self, found: Tensor | np.ndarray[Any, Any] | DracoDecoded | None) -> None:
        """All gradients are the same, so that they are their average, and every aggregator must find it."""
        result = found.gradient if isinstance(found, DracoDecoded) else found
        assert result is not None
        error = float((torch.as_tensor(result) - self.gradient).norm() / self.gradient.norm())
        assert error < 1e-5, error
