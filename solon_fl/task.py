"""What the server asks of one node in one round, and how that travels in a Flower message."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from torch import Tensor

from solon_fl.coding import Code
from solon_fl.config import CodeName, Mode, SolonConfig, Verification, make_code
from solon_fl.errors import ConfigurationError

__all__ = [
    "ARRAYS",
    "CONFIG",
    "DIGESTS",
    "RUN_SEED",
    "SHARE",
    "SILO_QUERY",
    "TASK",
    "WHERE",
    "Batch",
    "SolonTask",
    "digest_key",
    "task_record",
    "task_values",
    "time_to_live",
]

# Names of the records in a message. "arrays" and "config" are Flower's own habit.
ARRAYS = "arrays"  # server -> node: the model
CONFIG = "config"  # server -> node: the user's train config and "server-round"
RUN_SEED = "run-seed"  # in the config of an evaluation, which has no task
TASK = "solon"  # server -> node: a SolonTask
SHARE = "share"  # node -> server: an ArrayRecord with the one array "share"
DIGESTS = "digests"  # node -> server: a ConfigRecord with the one entry "digests", bytes
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
    """

    seed: int
    round: int
    number: int

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

        Cost: O(batch_size), however many examples there are.
        """
        if not 0 < batch_size <= num_examples:
            raise ConfigurationError(
                f"batch_size must be between 1 and the number of examples; got batch_size={batch_size}, "
                f"num_examples={num_examples}."
            )
        if num_examples <= SHUFFLED:  # quick enough, and what runs of earlier versions drew
            return torch.randperm(num_examples, generator=self.generator(), device="cpu")[:batch_size]
        draws = torch.randint(2**63 - 1, (batch_size,), generator=self.generator(), device="cpu").tolist()
        return torch.tensor(_first_of_shuffled(num_examples, draws), device="cpu")


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
    dim : int
        d, length of the vector to encode: all floating-point entries of the model, in its order, and complex ones, each
        number as two.
    buffers : tuple of str
        Entries of the model that no gradient moves (statistics, frozen weights): their change is encoded.
    verification
        See `solon_fl.SolonConfig`.
    mode, code, group_size, compression
        Of the run: see there.
    """

    round: int
    group: int
    slot: int
    seed: int
    num_batches: int
    dim: int
    mode: Mode
    code: CodeName
    group_size: int
    compression: int
    buffers: tuple[str, ...] = ()
    verification: Verification = "algebra"

    @property
    def digest_key(self) -> bytes:
        """What digests of shares are keyed by: run, round and group."""
        return digest_key(self.seed, self.round, self.group)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The group's batches in this round."""
        first = self.group * self.num_batches
        return tuple(Batch(self.seed, self.round, first + index) for index in range(self.num_batches))

    def make_code(self) -> Code:
        """Return the code."""
        return make_code(self.code, self.group_size, self.compression)

    @classmethod
    def of_run(
        cls, config: SolonConfig, round: int, *, group: int, slot: int, dim: int, buffers: tuple[str, ...]
    ) -> "SolonTask":
        """Return the task of a place in a run of this config."""
        return cls(
            round=round,
            group=group,
            slot=slot,
            seed=config.seed,
            num_batches=config.batches_per_group,
            dim=dim,
            mode=config.mode,
            code=config.code,
            group_size=config.group_size,
            compression=config.compression,
            buffers=buffers,
            verification=config.verification,
        )

    def to_record(self) -> ConfigRecord:
        """Return the task as a Flower record, a new one for every node."""
        return task_record({name: getattr(self, name) for name in self.__slots__})

    def to_message(self, arrays: ArrayRecord, config: ConfigRecord, node_id: int, timeout: float | None) -> Message:
        """Return the message that asks a node for this: the shared model, and a config and a task of its own."""
        content = RecordDict(
            {
                ARRAYS: arrays,
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


def task_record(values: dict[str, Any]) -> ConfigRecord:
    """Return a task's entries as a record that `task_values` reads.

    No buffers are no entry: Flower's message_size_mod can't tell the size of a record with an empty list.
    """
    buffers = list(values["buffers"])
    others = {name: value for name, value in values.items() if name != "buffers"}
    return ConfigRecord({**others, **({"buffers": buffers} if buffers else {})})


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
        Of all entries: whole numbers, but for "buffers" and those in `texts`.
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
    if set(values) != set(names):
        odd = sorted(set(values) ^ set(names))
        raise ConfigurationError(
            f"the task has missing or unknown entries {odd}; install the same solon_fl on server and nodes."
        )
    values["buffers"] = tuple(values["buffers"])
    for name, value in values.items():
        fits = value in texts[name] if name in texts else name == "buffers" or type(value) is int
        if not fits:
            raise ConfigurationError(f"the task's entry {name} is not valid; got {name}={value!r}.")
    return values
