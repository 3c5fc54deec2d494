"""Which group size r and compression k make a round shortest, and what that is worth."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar, get_args

from solon_fl.coding.decoder import worst_relative_error
from solon_fl.coding.digests import DIGEST_SIZE
from solon_fl.config import CodeName, Redundancy, SolonConfig, Verification, make_code, num_agreeing
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import Network, RoundSeconds, round_seconds
from solon_fl.simulations.plan.server_time import Kind, MeasuredServer, ServerSeconds

__all__ = ["Baseline", "Choice", "Plan", "plan"]

Option = TypeVar("Option", bound=str)

MOST_NODES = 1_000_000
LARGEST_DIM = 10**13
LONGEST_BATCH = 1e6  # seconds
LARGEST_GROUP = 128  # nodes; beyond, computation is multiplied by more than anybody pays
# Bytes a second of one thread (AMD EPYC): at d = 11M, r = 20 and k = 6..15, all digests took 0.14 to 0.26 s.
HASHED = 1e9  # of shares
ENCODED = 1e10  # of the gradient, read once for every share


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One admissible pair of group_size and compression, with or without digests and reactive redundancy.

    Attributes
    ----------
    num_nodes, byzantine, stragglers, group_size, compression, code, rtol, verification, redundancy
        Of the `SolonConfig`.
    bytes_out, bytes_in : int
        To and from all nodes that are asked in a round.
    seconds : RoundSeconds
        Of a round in which every node that is asked answers; with redundancy "reactive" also none of them lies.
    """

    num_nodes: int
    byzantine: int
    stragglers: int
    group_size: int
    compression: int
    code: CodeName
    rtol: float
    verification: Verification = "algebra"
    redundancy: Redundancy = "full"
    bytes_out: int
    bytes_in: int
    seconds: RoundSeconds

    @property
    def num_groups(self) -> int:
        """P / r."""
        return self.num_nodes // self.group_size

    @property
    def asked_per_group(self) -> int:
        """Nodes of a group that compute: r; with redundancy "reactive" as many as are enough if they agree."""
        return _asked(
            self.verification, self.redundancy, self.byzantine, self.compression, self.stragglers, self.group_size
        )

    @property
    def num_asked(self) -> int:
        """Nodes of all groups that compute."""
        return self.num_groups * self.asked_per_group

    @property
    def batches_per_node(self) -> int:
        """Batches that every node that is asked computes in a round, r."""
        return self.group_size

    @property
    def computations(self) -> int:
        """Batches that all nodes together compute in a round, each counted as often as it is computed."""
        return self.num_asked * self.batches_per_node

    @property
    def bytes_per_node(self) -> int:
        """Bytes that a node that is asked sends in a round."""
        return self.bytes_in // self.num_asked

    @property
    def certificate(self) -> float:
        """`Decoder.certificate` of the run; computed when first asked for, which can take a second."""
        return _certificate(self.code, self.group_size, self.compression, self.rtol)

    @property
    def is_void(self) -> bool:
        """Whether the certificate promises nothing, being 1 or more."""
        return self.certificate >= 1

    def config(self) -> SolonConfig:
        """Return the configuration to run."""
        return SolonConfig(
            num_nodes=self.num_nodes,
            byzantine=self.byzantine,
            compression=self.compression,
            stragglers=self.stragglers,
            group_size=self.group_size,
            code=self.code,
            rtol=self.rtol,
            verification=self.verification,
            redundancy=self.redundancy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a round costs without Solon.

    Attributes
    ----------
    name : str
        "no defence", "draco-repetition" or "draco-cyclic".
    tolerates : str
        How many liars, in words.
    num_nodes : int
        P.
    group_size : int
        Nodes of the largest group.
    batches_per_node : int
        Of the node that computes most.
    bytes_out, bytes_in : int
        To and from all nodes in a round.
    seconds : RoundSeconds
        Of a round in which every node answers.
    """

    name: Kind
    tolerates: str
    num_nodes: int
    group_size: int
    batches_per_node: int
    bytes_out: int
    bytes_in: int
    seconds: RoundSeconds

    @property
    def num_asked(self) -> int:
        """Nodes that compute: all."""
        return self.num_nodes

    @property
    def bytes_per_node(self) -> int:
        """Bytes that a node sends in a round."""
        return self.bytes_in // self.num_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that can be chosen, and what it costs.

    Attributes
    ----------
    network : Network
        The one planned for.
    num_nodes, dim : int
        P and d.
    batch_seconds : float
        Of one batch on one node.
    choices : tuple of Choice
        All that are admissible, the shortest round first.
    baselines : tuple of Baseline
        For comparison.
    """

    network: Network
    num_nodes: int
    dim: int
    batch_seconds: float
    choices: tuple[Choice, ...]
    baselines: tuple[Baseline, ...]

    @property
    def best(self) -> Choice:
        """The choice with the shortest round of those whose certificate is below 1.

        Raises
        ------
        ConfigurationError
            If there is none.
        """
        return self._first(self.choices)

    @property
    def thriftiest(self) -> Choice:
        """The choice with the fewest computations of those whose certificate is below 1, and of these the shortest.

        Raises
        ------
        ConfigurationError
            If there is none.
        """
        return self._first(sorted(self.choices, key=lambda choice: (choice.computations, choice.seconds.total)))

    def best_of_each_variant(self) -> dict[tuple[Verification, Redundancy], Choice]:
        """Return the best choice by verification and redundancy, as far as they are in the plan and have one."""
        pairs: list[tuple[Verification, Redundancy]] = [
            (verification, redundancy) for verification in get_args(Verification) for redundancy in get_args(Redundancy)
        ]
        best: dict[tuple[Verification, Redundancy], Choice] = {}
        for pair in pairs:
            of_pair = (choice for choice in self.choices if (choice.verification, choice.redundancy) == pair)
            first = next((choice for choice in of_pair if not choice.is_void), None)
            if first is not None:
                best[pair] = first
        return best

    def _first(self, choices: Iterable[Choice]) -> Choice:
        for choice in choices:
            if not choice.is_void:
                return choice
        least = min(self.choices, key=lambda choice: choice.certificate)
        raise ConfigurationError(
            f"a certificate must be below 1; the least of all choices is {least.certificate:.1e}, at "
            f"group_size={least.group_size}, compression={least.compression}, rtol={least.rtol:g}; "
            "lower rtol (with float64 shares) or byzantine."
        )

    def best_of_each_size(self) -> tuple[Choice, ...]:
        """Return the best choice of every group size that has one, the smallest first."""
        best: dict[int, Choice] = {}
        for choice in self.choices:
            if choice.group_size not in best and not choice.is_void:
                best[choice.group_size] = choice
        return tuple(best[size] for size in sorted(best))

    def break_even(self, baseline: Baseline) -> float:
        """Return the factor on all rates of the network below which some choice is faster than the baseline.

        The choice, which need not be `best`, has a certificate below 1. 0 if there is no such factor, inf if every
        factor is one. Latency, computation and the server's seconds stay as they are.
        """
        factors = [(self._break_even(choice, baseline), choice) for choice in self.choices]
        factors.sort(key=lambda pair: pair[0], reverse=True)
        return next((factor for factor, choice in factors if factor == 0 or not choice.is_void), 0.0)

    def _break_even(self, choice: Choice, baseline: Baseline) -> float:
        # A round takes a + b / factor seconds: a without the links, b on them at factor 1.
        saved = self._seconds_on_links(baseline) - self._seconds_on_links(choice)
        paid = sum(sign * (row.seconds.computation + row.seconds.server) for sign, row in ((1, choice), (-1, baseline)))
        if paid > 0:
            return max(saved / paid, 0.0)
        return math.inf if saved > 0 or (saved == 0 > paid) else 0.0

    def _seconds_on_links(self, row: Choice | Baseline) -> float:
        network = replace(self.network, latency=0.0)
        return network.transfer_seconds(num_nodes=row.num_asked, bytes_out=row.bytes_out, bytes_in=row.bytes_in)


def plan(
    *,
    num_nodes: int,
    byzantine: int,
    dim: int,
    batch_seconds: float,
    network: Network,
    stragglers: int = 0,
    code: CodeName = "fourier",
    rtol: float = 1e-6,
    server_seconds: ServerSeconds | None = None,
    share_bytes: int = 4,
    model_bytes: int | None = None,
    verification: Verification | Literal["any"] = "algebra",
    redundancy: Redundancy | Literal["any"] = "full",
) -> Plan:
    """Return all admissible group sizes and compressions, and what a round of each takes.

    Parameters
    ----------
    num_nodes, byzantine, stragglers, code, rtol
        Of the `SolonConfig`.
    dim : int
        d, entries of the gradient.
    batch_seconds : float
        Of one batch on one node.
    network : Network
        One of `NETWORKS`, or your own.
    server_seconds : callable, optional
        (kind, num_nodes, group_size, compression, dim) -> the server's seconds in one round; kind is "solon" or the
        name of a baseline. Default: `MeasuredServer`.
    share_bytes : 4 or 8
        Of one entry of a share: float32 or float64.
    model_bytes : int, optional
        Of the model, as sent to one node. Default: dim * share_bytes; really there are some 128 more for every
        array of the model, and its buffers.
    verification : "algebra", "digest" or "any"
        Of the `SolonConfig`; "any" ranks the choices of both.
    redundancy : "full", "reactive" or "any"
        Likewise.

    Raises
    ------
    ConfigurationError
        If no group size is admissible (the message says what to change), or a number is out of its range.

    Notes
    -----
    Admissible: r divides P, 2 s + e + k <= r (with digests max(2 s + 1, s + k) + e <= r), and r <= 128. All schemes
    process P batches a round, as in the paper.

    Digests: every reply carries 32 r bytes more; a node encodes and hashes all r shares once a round, and the server
    hashes those that arrive, at rates that were measured on one machine (`HASHED`, `ENCODED`).

    Redundancy "reactive" is planned for rounds in which all who are asked answer and agree: s + k + e nodes of a
    group (with digests max(s + 1, k) + e) get the model, compute r batches each, and send a share. A round in which
    they don't takes the computation twice, and sends what full redundancy does. The server's seconds are those of full
    redundancy, and no less with digests, though it has fewer shares to decode and no liars to locate.

    The baselines, per node:

    - "no defence" is an average: one batch, the whole gradient.
    - "draco-repetition": groups of 2 s + e + 1 nodes or more, as many and as equal as possible, in which
      every node computes the batches of all and sends the whole gradient; tolerates s liars a group, like Solon.
    - "draco-cyclic": 2 s + e + 1 batches and twice the gradient's bytes (complex numbers); tolerates s liars among
      ALL nodes, which is less.

    Examples
    --------
    >>> from solon_fl.simulations.network import NETWORKS
    >>> planned = plan(
    ...     num_nodes=20,
    ...     byzantine=2,
    ...     dim=1_000_000,
    ...     batch_seconds=0.1,
    ...     network=NETWORKS["home-20m"],
    ...     server_seconds=lambda *_: 0.0,
    ... )
    >>> planned.best.group_size, planned.best.compression
    (10, 6)

    References
    ----------
    Chen et al., arXiv:2110.01595: r >= 2 s + k. Chen et al., "DRACO", ICML 2018: both Draco schemes.
    """
    sizes = _admissible_sizes(num_nodes, byzantine, stragglers)
    _check(dim, batch_seconds, code, rtol, share_bytes, model_bytes)
    verifications: tuple[Verification, ...] = _wanted("verification", verification, get_args(Verification))
    redundancies: tuple[Redundancy, ...] = _wanted("redundancy", redundancy, get_args(Redundancy))
    if server_seconds is None:
        server_seconds = MeasuredServer(byzantine=byzantine, code=code, rtol=rtol, share_bytes=share_bytes)
    reckoning = _Reckoning(
        network=network,
        num_nodes=num_nodes,
        byzantine=byzantine,
        stragglers=stragglers,
        code=code,
        rtol=rtol,
        dim=dim,
        batch_seconds=batch_seconds,
        server_seconds=server_seconds,
        share_bytes=share_bytes,
        model_bytes=dim * share_bytes if model_bytes is None else model_bytes,
    )
    choices = [
        reckoning.choice(verification, redundancy, size, compression)
        for verification in verifications
        for redundancy in redundancies
        for size in sizes
        for compression in range(1, _largest_compression(verification, byzantine, stragglers, size) + 1)
    ]
    smallest = 2 * byzantine + stragglers + 1
    largest_repeated = -(-num_nodes // (num_nodes // smallest))
    return Plan(
        network=network,
        num_nodes=num_nodes,
        dim=dim,
        batch_seconds=batch_seconds,
        choices=tuple(sorted(choices, key=lambda choice: (choice.seconds.total, choice.group_size))),
        baselines=(
            reckoning.baseline("no defence", "none", size=1, batches=1, vectors=1),
            reckoning.baseline(
                "draco-repetition", f"{byzantine} a group", size=largest_repeated, batches=largest_repeated, vectors=1
            ),
            reckoning.baseline("draco-cyclic", f"{byzantine} in all", size=num_nodes, batches=smallest, vectors=2),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reckoning:
    """The arguments of `plan`, and what a row costs."""

    network: Network
    num_nodes: int
    byzantine: int
    stragglers: int
    code: CodeName
    rtol: float
    dim: int
    batch_seconds: float
    server_seconds: ServerSeconds
    share_bytes: int
    model_bytes: int

    def choice(self, verification: Verification, redundancy: Redundancy, size: int, compression: int) -> Choice:
        per_group = _asked(verification, redundancy, self.byzantine, compression, self.stragglers, size)
        asked = self.num_nodes // size * per_group
        share = -(-self.dim // compression) * self.share_bytes
        bytes_in = asked * share
        node_seconds, server_seconds = 0.0, self.server_seconds("solon", self.num_nodes, size, compression, self.dim)
        if verification == "digest":
            node_seconds = size * (share / HASHED + self.dim * self.share_bytes / ENCODED)
            server_seconds += bytes_in / HASHED
            bytes_in += asked * DIGEST_SIZE * size
        return Choice(
            num_nodes=self.num_nodes,
            byzantine=self.byzantine,
            stragglers=self.stragglers,
            group_size=size,
            compression=compression,
            code=self.code,
            rtol=self.rtol,
            verification=verification,
            redundancy=redundancy,
            bytes_out=asked * self.model_bytes,
            bytes_in=bytes_in,
            seconds=self._seconds(asked, size, bytes_in, server_seconds, node_seconds),
        )

    def baseline(self, name: Kind, tolerates: str, *, size: int, batches: int, vectors: int) -> Baseline:
        bytes_in = vectors * self.num_nodes * self.dim * self.share_bytes
        server_seconds = self.server_seconds(name, self.num_nodes, size, 1, self.dim)
        return Baseline(
            name=name,
            tolerates=tolerates,
            num_nodes=self.num_nodes,
            group_size=size,
            batches_per_node=batches,
            bytes_out=self.num_nodes * self.model_bytes,
            bytes_in=bytes_in,
            seconds=self._seconds(self.num_nodes, batches, bytes_in, server_seconds),
        )

    def _seconds(
        self, asked: int, batches: int, bytes_in: int, server_seconds: float, node_seconds: float = 0.0
    ) -> RoundSeconds:
        seconds = round_seconds(
            self.network,
            num_nodes=asked,
            batches_per_node=batches,
            batch_seconds=self.batch_seconds,
            bytes_out=asked * self.model_bytes,
            bytes_in=bytes_in,
            server_seconds=server_seconds,
            waited=False,
        )
        return replace(seconds, computation=seconds.computation + node_seconds)


def _asked(
    verification: Verification, redundancy: Redundancy, byzantine: int, compression: int, stragglers: int, size: int
) -> int:
    """Return how many nodes of a group compute in an honest round."""
    return size if redundancy == "full" else num_agreeing(verification, byzantine, compression) + stragglers


def _largest_compression(verification: Verification, byzantine: int, stragglers: int, size: int) -> int:
    """Return the largest k for a group size that is admissible, 2 s + e + 1 or more."""
    return size - stragglers - (byzantine if verification == "digest" else 2 * byzantine)


def _wanted(name: str, value: Option | Literal["any"], allowed: tuple[Option, ...]) -> tuple[Option, ...]:
    """Return what an option stands for, all if it is "any"."""
    if value == "any":
        return allowed
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, any; got {name}={value!r}.")
    return tuple(option for option in allowed if option == value)


@lru_cache(maxsize=4096)
def _certificate(code: CodeName, group_size: int, compression: int, rtol: float) -> float:
    return worst_relative_error(make_code(code, group_size, compression), rtol)


def _admissible_sizes(num_nodes: int, byzantine: int, stragglers: int) -> list[int]:
    """Return the divisors of P that can be r, ascending."""
    for name, value, least in (("num_nodes", num_nodes, 1), ("byzantine", byzantine, 0), ("stragglers", stragglers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name} must be a whole number >= {least}; got {name}={value!r}.")
    if num_nodes > MOST_NODES:
        raise ConfigurationError(f"num_nodes must be at most {MOST_NODES}; got num_nodes={num_nodes}.")
    smallest = 2 * byzantine + stragglers + 1
    divisors = [size for size in range(1, num_nodes + 1) if num_nodes % size == 0]
    sizes = [size for size in divisors if smallest <= size <= LARGEST_GROUP]
    if not sizes:
        most = (max(size for size in divisors if size <= LARGEST_GROUP) - stragglers - 1) // 2
        lower = f"lower byzantine to at most {most}, or " if 0 <= most < byzantine else ""
        more = (num_nodes // smallest + 1) * smallest
        raise ConfigurationError(
            "group_size must divide num_nodes, be at least 2*byzantine + stragglers + 1 and at most "
            f"{LARGEST_GROUP}; got num_nodes={num_nodes} with the divisors {', '.join(map(str, divisors))}, "
            f"byzantine={byzantine}, stragglers={stragglers}, so that group_size must be at least {smallest}; "
            f"{lower}use {more} nodes."
        )
    return sizes


def _check(
    dim: int, batch_seconds: float, code: CodeName, rtol: float, share_bytes: int, model_bytes: int | None
) -> None:
    if not isinstance(dim, int) or not 1 <= dim <= LARGEST_DIM:
        raise ConfigurationError(f"dim must be a whole number from 1 to {LARGEST_DIM:.0e}; got dim={dim!r}.")
    if not 0 <= batch_seconds <= LONGEST_BATCH:
        raise ConfigurationError(
            f"batch_seconds must be from 0 to {LONGEST_BATCH:.0e}; got batch_seconds={batch_seconds!r}."
        )
    if code not in get_args(CodeName):
        raise ConfigurationError(f"code must be one of {', '.join(get_args(CodeName))}; got code={code!r}.")
    if not 0 < rtol < 1:
        raise ConfigurationError(f"rtol must be between 0 and 1; got rtol={rtol!r}; 1e-6 suits float32 shares.")
    if share_bytes not in (4, 8):
        raise ConfigurationError(f"share_bytes must be 4 or 8 (float32 or float64); got share_bytes={share_bytes!r}.")
    if model_bytes is not None and model_bytes < 0:
        raise ConfigurationError(f"model_bytes must be at least 0; got model_bytes={model_bytes}.")
