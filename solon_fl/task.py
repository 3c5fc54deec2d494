"""The task of one node in one round, and its form in a Flower message."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from solon_fl.checks import check_whole
from solon_fl.coding import Code
from solon_fl.config import CodeName, Mode, SolonConfig, Verification, make_code, needs_equal_bits
from solon_fl.epochs import examples_at
from solon_fl.errors import ConfigurationError
from solon_fl.wire import BufferNames

__all__ = [
    "ARRAYS",
    "CONFIG",
    "DIGESTS",
    "RUN_SEED",
    "SHARE",
    "SILO_QUERY",
    "TASK",
    "UNREACHED",
    "WHERE",
    "Batch",
    "SolonTask",
    "digest_key",
    "share_name",
    "task_record",
    "task_values",
    "time_to_live",
]

# Names of the records in a message. "arrays" and "config" follow Flower's convention.
ARRAYS = "arrays"  # server -> node: the model
CONFIG = "config"  # server -> node: the user's train config and "server-round"
RUN_SEED = "run-seed"  # in the config of an evaluation, which has no task
TASK = "solon"  # server -> node: a SolonTask
SHARE = "share"  # node -> server: an ArrayRecord with the array "share", and further arrays if the task asks for them
DIGESTS = "digests"  # node -> server: a ConfigRecord whose only entry is "digests", bytes
UNREACHED = "unreached"  # node -> server: a ConfigRecord whose only entry, "names", lists parameters without a gradient
SILO_QUERY = "query.solon_silo"
WHERE = "\nIt was raised here, innermost last:\n"  # between an error's message and its traceback
GRACE_SECONDS = 60.0
SHUFFLED = 100_000  # up to this many examples, a batch's sample is the beginning of a shuffle of all


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a round, which is the same on all nodes that compute it.

    Attributes
    ----------
    seed, round, number : int
        The run's seed, the server round, and the batch's number in the round, from 0. A batch may depend only on these.
        With n batches per group, group g has the numbers g n to (g + 1) n - 1.
    place : int, optional
        How many batches of the same data precede this one in the run. `sample_epoch` needs it. The batches of a
        `SolonTask` have it. With grouping "silo", each silo counts its own batches.
    """

    seed: int
    round: int
    number: int
    place: int | None = None

    @property
    def torch_seed(self) -> int:
        """A 63-bit seed that differs from batch to batch."""
        state = np.random.SeedSequence([self.seed, self.round, self.number]).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))

    def generator(self) -> torch.Generator:
        """Return a CPU generator for everything random about this batch, such as sampling and augmentation."""
        return torch.Generator().manual_seed(self.torch_seed)

    def sample(self, num_examples: int, batch_size: int) -> Tensor:
        """Return `batch_size` distinct indices below `num_examples`, (batch_size,) int64, CPU.

        Every batch is drawn anew from all examples. `sample_epoch` instead takes each example once per epoch.

        Cost: O(batch_size), however many examples there are.
        """
        _check_sizes(num_examples, batch_size)
        if num_examples <= SHUFFLED:  # fast enough, and compatible with the draws of earlier versions
            return torch.randperm(num_examples, generator=self.generator(), device="cpu")[:batch_size]
        draws = torch.randint(2**63 - 1, (batch_size,), generator=self.generator(), device="cpu").tolist()
        return torch.tensor(_first_of_shuffled(num_examples, draws), device="cpu")

    def sample_epoch(self, num_examples: int, batch_size: int) -> Tensor:
        """Return the indices of this batch in an epoch, (batch_size,) int64, CPU. Each epoch has each example once.

        Parameters
        ----------
        num_examples, batch_size : int
            Number of examples and size of a batch, the same for all batches of the run.

        Raises
        ------
        ConfigurationError
            If the batch has no `place`, or no batch of this size can be drawn.

        Notes
        -----
        The batches of the run go through the examples in a random order, and through a new order in each epoch. If
        `num_examples` is not a multiple of `batch_size`, a batch may hold the last examples of one epoch and the first
        of the next. No batch is shorter, and no example is left out. Only such a batch can hold an example twice. The
        run's seed and the epoch's number determine the order. A batch whose group failed is not repeated; its examples
        come again in the next epoch.

        Cost: O(batch_size), however many examples there are. No order is stored.

        Examples
        --------
        >>> batches = [Batch(seed=0, round=1, number=place, place=place) for place in range(3)]
        >>> sorted(torch.cat([batch.sample_epoch(6, 2) for batch in batches]).tolist())
        [0, 1, 2, 3, 4, 5]
        """
        _check_sizes(num_examples, batch_size)
        if self.place is None:
            raise ConfigurationError(
                "sample_epoch needs to know how many batches came before; got place=None; take the batches of a "
                "SolonTask, or construct Batch(seed, round, number, place)."
            )
        return torch.from_numpy(examples_at(self.place * batch_size, batch_size, num_examples, self.seed))


def _check_sizes(num_examples: int, batch_size: int) -> None:
    check_whole("num_examples", num_examples, 1)
    if check_whole("batch_size", batch_size, 1) > num_examples:
        raise ConfigurationError(
            f"batch_size must be between 1 and the number of examples; got batch_size={batch_size}, "
            f"num_examples={num_examples}."
        )


def _first_of_shuffled(size: int, draws: list[int]) -> list[int]:
    """Return the first numbers of range(size) after a shuffle by these draws, without computing the rest."""
    moved: dict[int, int] = {}  # the numbers at positions that have changed
    chosen = []
    for place, draw in enumerate(draws):
        other = place + draw % (size - place)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class SolonTask:
    """A node's task in one round: which batches to compute, and which share of the result to send.

    Attributes
    ----------
    round, group, slot : int
        The server round (from 1), and the node's place.
    seed : int
        Seed of the run.
    num_batches : int
        Number of batches of the group in this round.
    groups_sharing_data : int
        Number of groups that compute batches of the same data: all groups of the run, or 1 if each silo has its own
        data.
    dim : int
        d, the length of the vector to encode. It holds all floating-point and complex entries of the model except the
        frozen ones, in the model's order. A complex number counts as two.
    buffers : tuple of str
        Entries of the model that no gradient changes. The change of those that are not `frozen` is encoded.
    mode, code, group_size, compression, verification
        See `solon_fl.SolonConfig`.
    also : tuple of int
        Vacant slots whose shares the node sends in addition to its own.
    """

    round: int
    group: int
    slot: int
    seed: int
    num_batches: int
    groups_sharing_data: int
    dim: int
    mode: Mode
    code: CodeName
    group_size: int
    compression: int
    buffers: tuple[str, ...] = ()
    verification: Verification = "algebra"
    also: tuple[int, ...] = ()

    @property
    def frozen(self) -> frozenset[str]:
        """The buffers that nothing changes, if `buffers` is a `BufferNames`."""
        return BufferNames.of(self.buffers).frozen

    @property
    def digest_key(self) -> bytes:
        """The key for digests of shares, derived from run, round and group."""
        return digest_key(self.seed, self.round, self.group)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The group's batches in this round."""
        number = self.group * self.num_batches
        groups_before = (self.round - 1) * self.groups_sharing_data + self.group % self.groups_sharing_data
        place = groups_before * self.num_batches
        return tuple(Batch(self.seed, self.round, number + n, place + n) for n in range(self.num_batches))

    @property
    def needs_equal_bits(self) -> bool:
        """Whether nodes of a group are of full use only if they compute the same bits."""
        return needs_equal_bits(self.verification, self.code)

    def make_code(self) -> Code:
        """Return the code."""
        return make_code(self.code, self.group_size, self.compression)

    @classmethod
    def of_run(
        cls,
        config: SolonConfig,
        round: int,
        *,
        group: int,
        slot: int,
        dim: int,
        buffers: tuple[str, ...],
        also: tuple[int, ...] = (),
    ) -> "SolonTask":
        """Return the task of one place in a run with this config."""
        return cls(
            round=round,
            group=group,
            slot=slot,
            seed=config.seed,
            num_batches=config.batches_per_group,
            groups_sharing_data=1 if config.grouping == "silo" else config.num_groups,
            dim=dim,
            mode=config.mode,
            code=config.code,
            group_size=config.group_size,
            compression=config.compression,
            buffers=buffers,
            verification=config.verification,
            also=also,
        )

    def to_record(self) -> ConfigRecord:
        """Return the task as a new Flower record."""
        return task_record({name: getattr(self, name) for name in self.__slots__})

    def to_message(
        self,
        model: Mapping[str, ArrayRecord | MetricRecord | ConfigRecord],
        config: ConfigRecord,
        node_id: int,
        timeout: float | None,
    ) -> Message:
        """Return the message that gives a node this task: the shared model, and the node's own config and task.

        `model` holds the records of the model: ``{"arrays": arrays}``, or the return value of a `ModelSender`.
        """
        content = RecordDict(
            {
                **model,
                CONFIG: ConfigRecord({**config, "server-round": self.round}),
                TASK: self.to_record(),
            }
        )
        return Message(content, node_id, MessageType.TRAIN, ttl=time_to_live(timeout), group_id=str(self.round))

    @classmethod
    def from_message(cls, message: Message) -> "SolonTask":
        """Return the task in a message from the server.

        Raises
        ------
        ConfigurationError
            If there is no task, or this version does not understand it.
        """
        texts = {"mode": get_args(Mode), "code": get_args(CodeName), "verification": get_args(Verification)}
        return cls(**task_values(message, TASK, "SolonStrategy", cls.__slots__, texts))


def time_to_live(timeout: float | None) -> float | None:
    """Return the seconds for which Flower keeps a message and accepts the reply, given the round's deadline.

    This is longer than the deadline. Otherwise Flower's own timeout error could come before the deadline, and small
    differences between clocks would cost replies.
    """
    return None if timeout is None else timeout + GRACE_SECONDS


def digest_key(seed: int, server_round: int, group: int) -> bytes:
    """Return the key of the digests of one group in one round, 24 bytes."""
    return b"".join(number.to_bytes(8, "big") for number in (seed, server_round, group))


def share_name(slot: int) -> str:
    """Return the name of the array with the share of a slot that a node sends in addition to its own."""
    return f"{SHARE}-{slot}"


def task_record(values: dict[str, Any]) -> ConfigRecord:
    """Return a task's entries as a record for `task_values` to read.

    Empty lists are left out, because Flower's message_size_mod can't handle a record with one.
    """
    names = BufferNames.of(values["buffers"])
    frozen = [name for name in names if name in names.frozen]
    lists: dict[str, Any] = {"buffers": list(names), "frozen": frozen, "also": list(values.get("also", ()))}
    others = {name: value for name, value in values.items() if name not in lists}
    return ConfigRecord({**others, **{name: entries for name, entries in lists.items() if entries}})


def task_values(
    message: Message,
    record_name: str,
    strategy: str,
    names: Collection[str],
    texts: Mapping[str, Collection[str]],
) -> dict[str, Any]:
    """Return the entries of the task in a message.

    Parameters
    ----------
    record_name, strategy : str
        The name of the task's record, and of the strategy that sends it.
    names : collection of str
        Names of all entries. The values are integers, except for "buffers" (names), "also" (integers), and the entries
        in `texts` (strings).
    texts : mapping
        The allowed values of each string entry.

    Raises
    ------
    ConfigurationError
        If there is no such record, or it holds anything else.
    """
    record = message.content.config_records.get(record_name)
    if record is None:
        raise ConfigurationError(
            f"the message has no record {record_name!r}: it was not sent by {strategy}; check the ServerApp's strategy."
        )
    values: dict[str, Any] = {"buffers": (), **record}
    values["buffers"] = BufferNames(values["buffers"], values.pop("frozen", ()))
    if "also" in names:
        values["also"] = tuple(values.get("also", ()))
    if set(values) != set(names):
        odd = sorted(set(values) ^ set(names))
        raise ConfigurationError(
            f"the task has missing or unknown entries {odd}; install the same solon_fl on server and nodes."
        )
    for name, value in values.items():
        fits = value in texts[name] if name in texts else name in ("buffers", "also") or type(value) is int
        if not fits:
            raise ConfigurationError(f"the task's entry {name} is not valid; got {name}={value!r}.")
    return values
