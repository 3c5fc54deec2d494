"""The one configuration object that server, client and simulation share."""

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from solon_fl.checks import check_number, check_one_of, check_whole
from solon_fl.coding import (
    Code,
    Decoder,
    ExactCode,
    ExactDecoder,
    FourierCode,
    RealCode,
    RealDecoder,
    smallest_group,
)
from solon_fl.errors import ConfigurationError

__all__ = [
    "EARLY_ERROR",
    "CodeName",
    "DownlinkName",
    "FailurePolicy",
    "Grouping",
    "Mode",
    "Redundancy",
    "Regroup",
    "SolonConfig",
    "Strangers",
    "Verification",
    "make_code",
    "make_decoder",
    "num_agreeing",
    "smallest_group_of",
    "smallest_group_with_digests",
]

CodeName = Literal["exact", "fourier"]
Mode = Literal["gradient", "update"]
Grouping = Literal["server", "silo"]
FailurePolicy = Literal["exclude", "skip", "stop"]
Strangers = Literal["spare", "refuse"]
Redundancy = Literal["full", "reactive"]
Verification = Literal["algebra", "digest"]
Regroup = Literal["never", "round"]
DownlinkName = Literal["full", "delta"]
EARLY_ERROR = 1e-3
"""Largest error bound, by the gradient's norm, of a result that is taken before all nodes of a group have answered."""
_FORMULAS = {  # of the smallest group, by whether there are digests and a referee
    (False, False): ("2*byzantine + stragglers + compression", ""),
    (True, False): (
        "max(2*byzantine + 1, byzantine + compression) + stragglers",
        " with verification='digest'",
    ),
    (False, True): ("byzantine + stragglers + compression", " with a referee"),
    (True, True): ("max(byzantine + 1, compression) + stragglers", " with verification='digest' and a referee"),
}


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
        allows: 2 s + e + k, with digests max(2 s + 1, s + k) + e, with a referee s + e + k, and with both
        max(s + 1, k) + e.
    code : "exact" or "fourier"
        Take "exact" where all nodes compute the same bits, which `solon_fl.strategies.calibrate` can tell: machines of
        one make with the same software, and all simulations; liars then change no bit of the model. Take "fourier"
        where they don't, or for float64. See `solon_fl.ExactCode` and `solon_fl.FourierCode`.
    rtol : float
        Largest relative difference between two honest nodes' shares of the same slot; measure it with
        `solon_fl.strategies.calibrate`. Without effect with code "exact".
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
    regroup : "never" or "round"
        Whether nodes keep their places, or the server draws all places anew at the start of every round, at random,
        among the nodes that are there: then nobody can choose whom to corrupt so that more than s of them are in one
        group. Only with grouping "server". docs/explanation/regrouping.md has the probability that some group has
        more than s liars all the same.
    quarantine_after : int, optional
        A node that has lied, or sent something else than a share, in this many rounds gets no more tasks. With code
        "exact" so does one whose share differs from the true one, whether it lies or is of another make. Default:
        never, and 1 with redundancy "reactive" or a referee; lies do no harm, and a quarantined node without a spare is
        missing for good.
    verification : "algebra" or "digest"
        How lies are told from the truth. "digest": every node sends digests of the shares of all its group too; s + 1
        equal votes fix them, and shares that don't match are erasures, so that r = max(2 s + 1, s + k) + e is
        enough. For nodes that compute the same bits; where they don't, a group is decoded by algebra if r is large
        enough for that, and fails if not. See docs/explanation/digests.md.
    redundancy : "full" or "reactive"
        Whether all nodes of a group compute in every round, or only s + k + e of them (with digests max(s + 1, k) + e;
        without, more where a result needs more to be precise), drawn anew in each round, and the others only in rounds
        in which those do not agree. See docs/explanation/reactive-redundancy.md.
    referee : bool
        Whether there is a referee, who computes a group's gradient itself where the nodes' shares don't settle it:
        see the parameter of that name of `SolonStrategy`. To notice lies takes smaller groups than to tell who lies:
        s can then be the majority. With code "exact" or digests it must compute the same bits as the nodes. See
        docs/explanation/referee.md.
    audit : float
        Probability, 0 to 1, with which the referee looks at a group in a round although all is well: then more than s
        nodes who agree on a lie are found out, too. Drawn when the shares are there.
    downlink : "full" or "delta"
        Whether every message holds the whole model, or only what has changed since the node was last asked, rounded to
        about a tenth of its bytes; what is rounded away is in the next message. Nodes then keep a copy, and compute
        gradients there: in the same round on the same copy, so that all guarantees hold. See
        docs/explanation/downlink.md.
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
    regroup: Regroup = "never"
    quarantine_after: int | None = None
    verification: Verification = "algebra"
    redundancy: Redundancy = "full"
    referee: bool = False
    audit: float = 0.0
    downlink: DownlinkName = "full"
    group_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("code", CodeName),
            ("mode", Mode),
            ("grouping", Grouping),
            ("on_group_failure", FailurePolicy),
            ("strangers", Strangers),
            ("redundancy", Redundancy),
            ("verification", Verification),
            ("regroup", Regroup),
            ("downlink", DownlinkName),
        ):
            check_one_of(name, getattr(self, name), get_args(allowed))
        for name, least in (("num_nodes", 1), ("group_size", 0), ("seed", 0), ("batches_per_group", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least, 2**63 - 1))
        for name, least in (("byzantine", 0), ("compression", 1), ("stragglers", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        for name in ("rtol", "audit"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        self._check_referee()
        if self.regroup == "round" and self.grouping == "silo":
            raise ConfigurationError(
                "regroup='round' needs grouping='server', as nodes of different silos hold different data; got "
                "grouping='silo'; set regroup='never'."
            )
        if self.quarantine_after is not None:
            object.__setattr__(self, "quarantine_after", check_whole("quarantine_after", self.quarantine_after, 1))
        elif self.redundancy == "reactive" or self.referee:
            object.__setattr__(self, "quarantine_after", 1)
        self._choose_group_size()
        if self.num_nodes % self.group_size:
            size = self.group_size
            below = self.num_nodes // size * size
            remedy = f"use {size} nodes, or lower byzantine or compression{self._smaller_groups}"
            if below:
                remedy = (
                    f"use {below} or {below + size} nodes, or set group_size to a divisor of {self.num_nodes} that is "
                    f"at least {self._smallest_group}"
                )
            raise ConfigurationError(
                f"num_nodes must be a multiple of group_size; got num_nodes={self.num_nodes}, group_size={size}; "
                f"{remedy}."
            )
        object.__setattr__(self, "batches_per_group", self.batches_per_group or self.group_size)
        if self.group_weights is not None:
            weights = tuple(check_number("group_weights", weight) for weight in self.group_weights)
            if len(weights) != self.num_groups or not all(0 < weight < float("inf") for weight in weights):
                raise ConfigurationError(
                    f"group_weights must be {self.num_groups} positive numbers, one a group; got {weights}."
                )
            object.__setattr__(self, "group_weights", weights)

    @property
    def _smaller_groups(self) -> str:
        """What would make do with the nodes that there are, in words; "" if nothing does."""
        s, k, e = self.byzantine, self.compression, self.stragglers
        ways: dict[tuple[Verification, bool], str] = {
            ("digest", True): "a referee and verification='digest'",
            (self.verification, True): "a referee",
            ("digest", self.referee): "verification='digest'",
        }
        ways.pop((self.verification, self.referee), None)
        sizes = {
            way: smallest_group_of(*settings, byzantine=s, compression=k, stragglers=e)
            for settings, way in reversed(ways.items())
        }
        enough = [f"{way} ({size})" for way, size in sizes.items() if size <= self.num_nodes]
        return f", or take {' or '.join(enough[:2])}" if enough else ""

    def _check_referee(self) -> None:
        if not isinstance(self.referee, bool):
            raise ConfigurationError(
                f"referee must be True or False; got referee={self.referee!r}; the referee itself is a parameter of "
                "SolonStrategy."
            )
        if not 0 <= self.audit <= 1:
            raise ConfigurationError(
                f"audit must be between 0 and 1, a probability; got audit={self.audit}; 0.01 audits one group in a "
                "hundred rounds."
            )
        if self.audit and not self.referee:
            raise ConfigurationError(f"audit={self.audit} needs a referee; got referee=False; set referee=True.")

    def _choose_group_size(self) -> None:
        """Check s, k, e, r and rtol, and take the smallest r if none is given."""
        smallest = self._smallest_group
        size = self.group_size or smallest
        if size < smallest:
            formula, given = _FORMULAS[self.verification == "digest", self.referee]
            raise ConfigurationError(
                f"group_size must be at least {formula}{given}; got group_size={size}, byzantine={self.byzantine}, "
                f"stragglers={self.stragglers}, compression={self.compression}; raise group_size to {smallest}, or "
                "lower one of the others."
            )
        object.__setattr__(self, "group_size", size)
        self.make_decoder()  # checks the rest, and warns if its certificate is void

    @property
    def num_groups(self) -> int:
        """P / r."""
        return self.num_nodes // self.group_size

    @property
    def num_agreeing(self) -> int:
        """Nodes of a group that must agree; see the function of that name."""
        return num_agreeing(self.verification, self.byzantine, self.compression)

    @property
    def needs_equal_bits(self) -> bool:
        """Whether nodes that compute other bits than their groups are of no use, or of less."""
        return self.verification == "digest" or self.code == "exact"

    @property
    def num_precise(self) -> int:
        """Nodes of a group, k + s at least, whose shares bound the error by `EARLY_ERROR`, whatever liars do.

        With digests the shares are the true ones, bit by bit, and an exact code makes no errors: then as many as must
        agree.
        """
        return self.num_agreeing if self.verification == "digest" else _num_precise(self.make_decoder())

    @property
    def can_decode_by_algebra(self) -> bool:
        """Whether r is large enough to find s liars without digests."""
        s, k, e = self.byzantine, self.compression, self.stragglers
        return self.group_size >= smallest_group(byzantine=s, compression=k, stragglers=e)

    def make_code(self) -> Code:
        """Return the code (one object per set of parameters and process)."""
        return make_code(self.code, self.group_size, self.compression)

    def make_decoder(self) -> Decoder:
        """Return the decoder (one object per set of parameters and process).

        Where r is too small to find s liars without digests, it decodes only shares that match the digests elected:
        none of these is a lie, and the liars' are missing.
        """
        s, e = self.byzantine, self.stragglers
        if self.verification == "digest" and not self.can_decode_by_algebra:
            s, e = 0, self.group_size - self.compression
        return make_decoder(self.make_code(), s, e, self.rtol, self.referee)

    @property
    def _smallest_group(self) -> int:
        s, k, e = self.byzantine, self.compression, self.stragglers
        return smallest_group_of(self.verification, self.referee, byzantine=s, compression=k, stragglers=e)


def smallest_group_of(
    verification: Verification, referee: bool, *, byzantine: int, compression: int, stragglers: int
) -> int:
    """Return the smallest group that these settings allow: see `SolonConfig.group_size`; check the three numbers."""
    smallest = smallest_group_with_digests if verification == "digest" else smallest_group
    without_referee = smallest(byzantine=byzantine, compression=compression, stragglers=stragglers)
    return num_agreeing(verification, byzantine, compression) + stragglers if referee else without_referee


def smallest_group_with_digests(*, byzantine: int, compression: int, stragglers: int) -> int:
    """Return max(2 s + 1, s + k) + e, the smallest group that digests allow; check the three numbers."""
    smallest_group(byzantine=byzantine, compression=compression, stragglers=stragglers)
    return max(2 * byzantine + 1, byzantine + compression) + stragglers


def num_agreeing(verification: Verification, byzantine: int, compression: int) -> int:
    """Return how many nodes of a group must agree: k + s, with digests the larger of s + 1 and k."""
    return max(byzantine + 1, compression) if verification == "digest" else compression + byzantine


@lru_cache(maxsize=64)
def _num_precise(decoder: Decoder) -> int:
    """Return how many shares that agree bound the error so; all r if fewer don't."""
    size, fewest = decoder.code.group_size, decoder.byzantine + decoder.code.compression
    if decoder.expected_error(fewest) <= EARLY_ERROR:  # which is known already, while the others may take a second each
        return fewest
    numbers = range(fewest + 1, size)
    return fewest + 1 + bisect_left(numbers, True, key=lambda number: decoder.expected_error(number) <= EARLY_ERROR)


@lru_cache(maxsize=64)
def make_code(name: CodeName, group_size: int, compression: int) -> Code:
    """Return the code of that name with r rows and k columns (one object per set of parameters and process)."""
    kinds: dict[CodeName, type[Code]] = {"exact": ExactCode, "fourier": FourierCode}
    return kinds[name](group_size=group_size, compression=compression)


@lru_cache(maxsize=64)
def make_decoder(code: Code, byzantine: int, stragglers: int, rtol: float, detect_only: bool = False) -> Decoder:
    """Return the decoder of a code with these parameters (one object per set of parameters and process)."""
    if isinstance(code, ExactCode):
        return ExactDecoder(code, byzantine=byzantine, stragglers=stragglers, detect_only=detect_only)
    assert isinstance(code, RealCode)
    return RealDecoder(code, byzantine=byzantine, stragglers=stragglers, rtol=rtol, detect_only=detect_only)
