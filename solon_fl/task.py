"""What the server asks of one node in one round, and how that travels in a Flower message."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from solon_fl.checks import check_whole
from solon_fl.coding import Code
from solon_fl.config import CodeName, Mode, SolonConfig, Verification, make_code
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

# Names of the records in a message. "arrays" and "config" are Flower's own habit.
ARRAYS = "arrays"  # server -> node: the model
CONFIG = "config"  # server -> node: the user's train config and "server-round"
RUN_SEED = "run-seed"  # in the config of an evaluation, which has no task
TASK = "solon"  # server -> node: a SolonTask
SHARE = "share"  # node -> server: an ArrayRecord with the array "share", and further ones if the task says so
DIGESTS = "digests"  # node -> server: a ConfigRecord with the one entry "digests", bytes
UNREACHED = "unreached"  # node -> server: a ConfigRecord with the one entry "names", of parameters that no loss reached
SILO_QUERY = "query.solon_silo"
WHERE = "\nIt was raised here, innermost last:\n"  # between an error's text and the lines that say where
GRACE_SECONDS = 60.0
SHUFFLED = 100_000  # examples that a batch's sample may be a shuffle of


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a round; the same for all nodes that compute it.

    Attributes
    ----------
    seed, round, number : int
        Run seed, server round, and the batch's number among all of the round, from 0: all that a batch may
        depend on. With n batches a group, group g has the numbers g n to (g + 1) n - 1.
    place : int, optional
        How many batches of the same data the run has before this one, from 0: what `sample_epoch` needs to know. The
        batches of a `SolonTask` have it. With grouping "silo" each silo counts its own.
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
        """Return a CPU generator for this batch: augmentation, sampling, anything random about it."""
        return torch.Generator().manual_seed(self.torch_seed)

    def sample(self, num_examples: int, batch_size: int) -> Tensor:
        """Return `batch_size` distinct indices below `num_examples`, (batch_size,) int64, CPU.

        Every batch is drawn anew from all examples; `sample_epoch` takes each example once an epoch.
        Cost: O(batch_size), however many examples there are.
        """
        _check_sizes(num_examples, batch_size)
        if num_examples <= SHUFFLED:  # quick enough, and what runs of earlier versions drew
            return torch.randperm(num_examples, generator=self.generator(), device="cpu")[:batch_size]
        draws = torch.randint(2**63 - 1, (batch_size,), generator=self.generator(), device="cpu").tolist()
        return torch.tensor(_first_of_shuffled(num_examples, draws), device="cpu")

    def sample_epoch(self, num_examples: int, batch_size: int) -> Tensor:
        """Return this batch's part of an epoch, (batch_size,) int64, CPU: each example comes once in every epoch.

        Parameters
        ----------
        num_examples, batch_size : int
            The same in all batches of the run.

        Raises
        ------
        ConfigurationError
            If the batch does not know its `place`, or no batch of this size can be drawn.

        Notes
        -----
        All batches of the run, one after the other, go through the examples in a random order, and when that is at its
        end in another one. Where `num_examples` is no multiple of `batch_size` a batch has the last examples of
        an epoch and the first of the next; none is shorter, and no example is left out. Only such a batch can hold an
        example twice. The order follows from the run's seed and the epoch. A batch whose group failed is not made up
        for: its examples come again in the next epoch.
        Cost: O(batch_size), however many examples there are; no order is kept.

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
    """Return the first numbers of range(size) after a shuffle by these draws, without making the rest."""
    moved: dict[int, int] = {}  # what stands where it did not at first
    chosen = []
    for place, draw in enumerate(draws):
        other = place + draw % (size - place)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class SolonTask:
    """A node's work in one round: which batches to compute, and which share of the result to send.

    Attributes
    ----------
    round, group, slot : int
        Server round (from 1), and the node's place.
    seed : int
        Of the run.
    num_batches : int
        Batches of the group in this round.
    groups_sharing_data : int
        Groups that compute batches of the same data: all of the run, or 1 if each silo has its own.
    dim : int
        d, length of the vector to encode: all floating-point entries of the model but the frozen ones, in its order,
        and complex ones, each number as two.
    buffers : tuple of str
        Entries of the model that no gradient moves: the change of those that are not `frozen` is encoded.
    verification
        See `solon_fl.SolonConfig`.
    mode, code, group_size, compression
        Of the run: see there.
    also : tuple of int
        Further slots whose shares the node sends, as nobody is in them.
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
        """Those of the buffers that nothing moves, if they came as `BufferNames`."""
        return BufferNames.of(self.buffers).frozen

    @property
    def digest_key(self) -> bytes:
        """What digests of shares are keyed by: run, round and group."""
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
        """Whether nodes that compute other bits are of no use, or of less."""
        return self.verification == "digest" or self.code == "exact"

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
        """Return the task of a place in a run of this config."""
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
        """Return the task as a Flower record, a new one for every node."""
        return task_record({name: getattr(self, name) for name in self.__slots__})

    def to_message(
        self,
        model: Mapping[str, ArrayRecord | MetricRecord | ConfigRecord],
        config: ConfigRecord,
        node_id: int,
        timeout: float | None,
    ) -> Message:
        """Return the message that asks a node for this: the shared model, and a config and a task of its own.

        `model` are the records that the model comes in: ``{"arrays": arrays}``, or what a `ModelSender` returns.
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
        """Return the task that a message from the server carries.

        Raises
        ------
        ConfigurationError
            If there is none, or it is not one that this version understands.
        """
        texts = {"mode": get_args(Mode), "code": get_args(CodeName), "verification": get_args(Verification)}
        return cls(**task_values(message, TASK, "SolonStrategy", cls.__slots__, texts))


def time_to_live(timeout: float | None) -> float | None:
    """Return the seconds for which Flower keeps a message and lets it be answered, given the round's deadline.

    Longer than the deadline: else Flower's own error, that time is up, could come before the deadline, and clocks that
    differ a little would cost answers.
    """
    return None if timeout is None else timeout + GRACE_SECONDS


def digest_key(seed: int, server_round: int, group: int) -> bytes:
    """Return the key of the digests of one group in one round, 24 bytes."""
    return b"".join(number.to_bytes(8, "big") for number in (seed, server_round, group))


def share_name(slot: int) -> str:
    """Return the name of the array with the share of one of the slots that a node sends beside its own."""
    return f"{SHARE}-{slot}"


def task_record(values: dict[str, Any]) -> ConfigRecord:
    """Return a task's entries as a record that `task_values` reads.

    Empty lists are no entries: Flower's message_size_mod can't tell the size of a record with one.
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
        The task's record, and whose it is.
    names : collection of str
        Of all entries: whole numbers, but for "buffers", names, "also", numbers, and those in `texts`.
    texts : mapping
        What each entry that is a text may be.

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
