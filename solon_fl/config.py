"""The configuration that server, nodes and simulation share."""

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
    "needs_equal_bits",
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
"""Largest error bound, relative to the gradient's norm, of a result accepted before all nodes of a group reply."""
_FORMULAS = {  # for the smallest group, by whether there are digests and whether there is a referee
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
    """The settings of a Solon run, apart from the model, the data and the optimizer.

    Parameters
    ----------
    num_nodes : int
        P, the number of nodes in the run: a multiple of ``group_size``.
    byzantine : int
        s, the number of nodes of ONE group that may lie arbitrarily in every round.
    compression : int
        k, the factor by which a share is shorter than the gradient.
    stragglers : int
        e, the number of nodes of one group that may not reply.
    group_size : int
        r, the number of nodes in a group, which all compute the same gradient. The default, 0, chooses the smallest
        group that the theorem allows: 2 s + e + k, with digests max(2 s + 1, s + k) + e, with a referee s + e + k, and
        with both max(s + 1, k) + e.
    code : "exact" or "fourier"
        Choose "exact" if all nodes compute the same bits. This is so in every simulation, and with hardware and
        software of the same kind; `solon_fl.strategies.calibrate` checks it. Then liars can't change a bit of the
        model. Choose "fourier" otherwise, and for float64. See `solon_fl.ExactCode` and `solon_fl.FourierCode`.
    rtol : float
        Largest relative difference between two honest nodes' shares of the same slot. Measure it with
        `solon_fl.strategies.calibrate`. It has no effect with code "exact".
    seed : int
        Seed of the run. Together with the round and the group it determines the batches. 0 <= seed < 2**63.
    batches_per_group : int
        Number of batches that every node of a group computes in a round. The default, 0, means ``group_size``, as in
        the paper: P nodes process P batches a round, each computed r times.
    mode : "gradient" or "update"
        Whether nodes send the gradient, or the change of the model after local steps.
    grouping : "server" or "silo"
        Whether the server forms the groups (ordered by registered name and node id), or each silo is a group. A node
        registered under a name like "hospital-a/3" belongs to the silo named before the "/". Other nodes report their
        silo.
    on_group_failure : "exclude", "skip" or "stop"
        Whether to average the other groups, skip the round, or stop the run if a group can't be decoded.
    strangers : "spare" or "refuse"
        Whether nodes that connect after the start of the run may fill in for absent or quarantined nodes, or get no
        tasks.
    regroup : "never" or "round"
        Whether nodes keep their places, or the server assigns all connected nodes to random places at the start of
        every round. With "round", an attacker can't put more than s corrupt nodes into one group by choosing which
        nodes to corrupt. It requires grouping "server". docs/explanation/regrouping.md gives the probability that a
        group has more than s liars by chance.
    quarantine_after : int, optional
        Number of rounds with a lie or a malformed reply after which a node gets no more tasks. With code "exact",
        rounds in which its share differs from the true one also count, whether it lies or has other hardware or
        software. Default: never, but 1 with redundancy "reactive" or a referee. Lies within the budget do no harm,
        whereas a quarantined node without a spare is missing for the rest of the run.
    verification : "algebra" or "digest"
        How to detect lies. With "digest", every node also sends digests of the shares of its whole group. s + 1 equal
        votes determine the true digests, and shares that don't match them are erasures, so that
        r = max(2 s + 1, s + k) + e is enough. This requires nodes that compute the same bits. Where they don't, a group
        is decoded by algebra if r is large enough for that, and fails otherwise. See docs/explanation/digests.md.
    redundancy : "full" or "reactive"
        Whether all nodes of a group compute in every round, or at first only s + k + e of them, drawn anew in each
        round (max(s + 1, k) + e with digests; more without digests if a precise result needs more). The others
        compute only in rounds in which these disagree. See docs/explanation/reactive-redundancy.md.
    referee : bool
        Whether there is a referee, which computes a group's gradient itself if the nodes' shares don't settle it; see
        the parameter ``referee`` of `SolonStrategy`. Detecting lies takes smaller groups than locating them, so s can
        be the majority. With code "exact" or digests, the referee must compute the same bits as the nodes. See
        docs/explanation/referee.md.
    audit : float
        Probability, from 0 to 1, that the referee checks a group in a round even though its shares agree. Audits also
        detect more than s nodes that agree on a lie. The draw takes place after the shares have arrived.
    downlink : "full" or "delta"
        Whether every message holds the whole model, or only its change since the node's last task, rounded to about a
        tenth of its bytes. Rounding errors are part of the next message. With "delta", nodes keep a copy of the model
        and compute gradients there. All nodes have the same copy in the same round, so all guarantees hold. See
        docs/explanation/downlink.md.
    group_weights : tuple of float, optional
        Weight of each group in the average, for groups with different amounts of data. Default: equal weights.

    Raises
    ------
    ConfigurationError
        If the settings contradict each other or the theorem. The message names the value and the remedy.

    Examples
    --------
    >>> config = SolonConfig(num_nodes=20, byzantine=2, compression=6)
    >>> config.group_size, config.num_groups
    (10, 2)
    >>> SolonConfig(num_nodes=23, byzantine=2, compression=6)
    Traceback (most recent call last):
        ...
    solon_fl.errors.ConfigurationError: num_nodes must be a multiple of group_size; got num_nodes=23, group_size=10; \
use 20 or 30 nodes, or group_size=23, which divides 23 and is at least 10.
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
                "regroup='round' needs grouping='server', because nodes of different silos hold different data; got "
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
                least = self._smallest_group
                divisors = (n for n in range(least, min(self.num_nodes, 10**6)) if self.num_nodes % n == 0)
                remedy = (
                    f"use {below} or {below + size} nodes, or group_size={next(divisors, self.num_nodes)}, which "
                    f"divides {self.num_nodes} and is at least {least}"
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
                    f"group_weights must be {self.num_groups} positive numbers, one per group; got {weights}."
                )
            object.__setattr__(self, "group_weights", weights)

    @property
    def _smaller_groups(self) -> str:
        """A hint about settings for which `num_nodes` is enough; "" if there are none."""
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
                f"audit must be a probability between 0 and 1; got audit={self.audit}; 0.01 audits each group about "
                "once in a hundred rounds."
            )
        if self.audit and not self.referee:
            raise ConfigurationError(f"audit={self.audit} needs a referee; got referee=False; set referee=True.")

    def _choose_group_size(self) -> None:
        """Check s, k, e, r and rtol, and choose the smallest r if none is given."""
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
        self.make_decoder()  # checks the rest, and warns if its certificate is 1 or more

    @property
    def num_groups(self) -> int:
        """P / r."""
        return self.num_nodes // self.group_size

    @property
    def num_agreeing(self) -> int:
        """The number of nodes of a group that must agree: k + s, with digests the larger of s + 1 and k."""
        return num_agreeing(self.verification, self.byzantine, self.compression)

    @property
    def needs_equal_bits(self) -> bool:
        """Whether nodes of a group are of full use only if they compute the same bits."""
        return needs_equal_bits(self.verification, self.code)

    @property
    def num_precise(self) -> int:
        """The number of agreeing nodes that bounds the error by `EARLY_ERROR`, whatever liars do.

        It is at least k + s, and exactly that with code "exact". With digests it equals `num_agreeing`, because the
        shares are equal to the true ones bit for bit.
        """
        return self.num_agreeing if self.verification == "digest" else _num_precise(self.make_decoder())

    @property
    def can_decode_by_algebra(self) -> bool:
        """Whether r is large enough to locate s liars without digests."""
        s, k, e = self.byzantine, self.compression, self.stragglers
        return self.group_size >= smallest_group(byzantine=s, compression=k, stragglers=e)

    def make_code(self) -> Code:
        """Return the code. Calls with the same parameters share one object per process."""
        return make_code(self.code, self.group_size, self.compression)

    def make_decoder(self) -> Decoder:
        """Return the decoder. Calls with the same parameters share one object per process.

        If r is too small to locate s liars without digests, the decoder gets only shares that match the elected
        digests. None of these is a lie, and the lies are erasures.
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
    """Return the smallest group that these settings allow, see `SolonConfig`; check the three numbers."""
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


def needs_equal_bits(verification: Verification, code: CodeName) -> bool:
    """Return whether nodes of a group are of full use only if they compute the same bits."""
    return verification == "digest" or code == "exact"


@lru_cache(maxsize=64)
def _num_precise(decoder: Decoder) -> int:
    """Return how many agreeing shares bound the error by `EARLY_ERROR`; all r if no smaller number does."""
    size, fewest = decoder.code.group_size, decoder.byzantine + decoder.code.compression
    if decoder.expected_error(fewest) <= EARLY_ERROR:  # already computed; the others may take a second each
        return fewest
    numbers = range(fewest + 1, size)
    return fewest + 1 + bisect_left(numbers, True, key=lambda number: decoder.expected_error(number) <= EARLY_ERROR)


@lru_cache(maxsize=64)
def make_code(name: CodeName, group_size: int, compression: int) -> Code:
    """Return the code of this name with r rows and k columns (one object per set of parameters and process)."""
    kinds: dict[CodeName, type[Code]] = {"exact": ExactCode, "fourier": FourierCode}
    return kinds[name](group_size=group_size, compression=compression)


@lru_cache(maxsize=64)
def make_decoder(code: Code, byzantine: int, stragglers: int, rtol: float, detect_only: bool = False) -> Decoder:
    """Return the decoder of a code with these parameters (one object per set of parameters and process)."""
    if isinstance(code, ExactCode):
        return ExactDecoder(code, byzantine=byzantine, stragglers=stragglers, detect_only=detect_only)
    assert isinstance(code, RealCode)
    return RealDecoder(code, byzantine=byzantine, stragglers=stragglers, rtol=rtol, detect_only=detect_only)
