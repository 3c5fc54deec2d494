"""The one configuration object that server, client and simulation share."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from solon_fl.coding import FourierCode, LinearCode, VandermondeCode
from solon_fl.errors import ConfigurationError

__all__ = ["CodeName", "FailurePolicy", "Grouping", "Mode", "SolonConfig", "Strangers", "make_code"]

CodeName = Literal["fourier", "vandermonde"]
Mode = Literal["gradient", "update"]
Grouping = Literal["server", "silo"]
FailurePolicy = Literal["exclude", "skip", "stop"]
Strangers = Literal["spare", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolonConfig:
    """Everything that a Solon run is defined by, apart from the model, the data and the optimizer.

    Parameters
    ----------
    num_nodes : int
        P, nodes in the run: a multiple of group_size.
    byzantine : int
        s, nodes of ONE group that may lie arbitrarily, in every round.
    compression : int
        k, a node sends 1/k of the gradient's length.
    stragglers : int
        e, nodes of one group that may not answer.
    group_size : int
        r, nodes of a group, all computing the same gradient. Default 0: the smallest that the theorem
        allows, 2 s + e + k.
    code : "fourier" or "vandermonde"
        See `solon_fl.FourierCode` and `solon_fl.VandermondeCode`.
    rtol : float
        Largest relative difference between two honest nodes' shares of the same slot; measure it with
        `solon_fl.strategies.calibrate`.
    seed : int
        Of the run: with round and group it fixes the batches. 0 <= seed < 2**63.
    batches_per_group : int
        Batches that every node of a group computes in a round. Default 0: group_size, as in the paper, so that
        P nodes process P batches a round, each computed r times.
    mode : "gradient" or "update"
        Whether nodes send the gradient, or the change of the model after local steps.
    grouping : "server" or "silo"
        Whether the server forms the groups (by sorted registered name and node id), or each silo is a group. A node
        registered under a name like "hospital-a/3" is in the silo before the "/"; others say which they are in.
    on_group_failure : "exclude", "skip" or "stop"
        If a group can't be decoded: average the other groups, skip the round, or stop the run.
    strangers : "spare" or "refuse"
        What becomes of nodes that connect after the run began: they may fill in for one that is away or
        quarantined, or get nothing to do.
    quarantine_after : int, optional
        A node that has lied, or sent something else than a share, in this many rounds gets no more tasks. Default:
        never; lies do no harm, and a quarantined node without a spare is missing for good.
    group_weights : tuple of float, optional
        Weight of each group in the average, for groups that hold different amounts of data. Default: equal.

    Raises
    ------
    ConfigurationError
        If the settings contradict each other or the theorem; the message says which value and what to do.

    Examples
    --------
    >>> config = SolonConfig(num_nodes=20, byzantine=2, compression=6)
    >>> config.group_size, config.num_groups
    (10, 2)
    >>> SolonConfig(num_nodes=23, byzantine=2, compression=6)
    Traceback (most recent call last):
        ...
    solon_fl.errors.ConfigurationError: num_nodes must be a multiple of group_size; got num_nodes=23, group_size=10; \
use 20 or 30 nodes, or set group_size to a divisor of 23 that is at least 10.
    """

    num_nodes: int
    byzantine: int
    compression: int
    stragglers: int = 0
    group_size: int = 0
    code: CodeName = "fourier"
    rtol: float = 1e-6
    seed: int = 0
    batches_per_group: int = 0
    mode: Mode = "gradient"
    grouping: Grouping = "server"
    on_group_failure: FailurePolicy = "exclude"
    strangers: Strangers = "spare"
    quarantine_after: int | None = None
    group_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("code", CodeName),
            ("mode", Mode),
            ("grouping", Grouping),
            ("on_group_failure", FailurePolicy),
            ("strangers", Strangers),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(get_args(allowed))}; got {name}={getattr(self, name)!r}."
                )
        for name, least in (("num_nodes", 1), ("group_size", 0), ("seed", 0), ("batches_per_group", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
                raise ConfigurationError(f"{name} must be a whole number >= {least}; got {name}={value!r}.")
        after = self.quarantine_after
        if after is not None and (not isinstance(after, int) or isinstance(after, bool) or after < 1):
            raise ConfigurationError(
                f"quarantine_after must be a whole number of offences >= 1, or None for never; got {after!r}."
            )
        # The code checks s, k, e, r and rtol, and knows the smallest r.
        size = self.make_code().group_size
        object.__setattr__(self, "group_size", size)
        if self.num_nodes % size:
            below = self.num_nodes // size * size
            nodes = f"{below} or {below + size}" if below else f"{size}"
            raise ConfigurationError(
                f"num_nodes must be a multiple of group_size; got num_nodes={self.num_nodes}, group_size={size}; "
                f"use {nodes} nodes, or set group_size to a divisor of {self.num_nodes} that is at least "
                f"{2 * self.byzantine + self.stragglers + self.compression}."
            )
        object.__setattr__(self, "batches_per_group", self.batches_per_group or size)
        if self.group_weights is not None:
            weights = tuple(float(weight) for weight in self.group_weights)
            if len(weights) != self.num_groups or not all(0 < weight < float("inf") for weight in weights):
                raise ConfigurationError(
                    f"group_weights must be {self.num_groups} positive numbers, one a group; got {weights}."
                )
            object.__setattr__(self, "group_weights", weights)

    @property
    def num_groups(self) -> int:
        """P / r."""
        return self.num_nodes // self.group_size

    def make_code(self) -> LinearCode:
        """Return the code (one object per set of parameters and process)."""
        return make_code(
            self.code, self.byzantine, self.compression, self.stragglers, self.group_size or None, self.rtol
        )


@lru_cache(maxsize=32)
def make_code(
    name: CodeName, byzantine: int, compression: int, stragglers: int, group_size: int | None, rtol: float
) -> LinearCode:
    """Return the code of that name and those parameters; see `SolonConfig` for what they mean."""
    kind: type[FourierCode] | type[VandermondeCode] = FourierCode if name == "fourier" else VandermondeCode
    return kind(byzantine=byzantine, compression=compression, stragglers=stragglers, group_size=group_size, rtol=rtol)
