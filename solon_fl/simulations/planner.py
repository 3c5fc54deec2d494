"""Which group size r and compression k make a round shortest, and what that is worth."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch

from solon_fl.coding import CertificateWarning, CyclicCode, RepetitionCode
from solon_fl.coding.projection import NUM_PROJECTIONS
from solon_fl.config import CodeName, SolonConfig, make_code
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import Network, RoundSeconds, round_seconds

__all__ = ["Baseline", "Choice", "MeasuredServer", "Plan", "ServerSeconds", "plan"]

Kind = Literal["solon", "no defence", "draco-repetition", "draco-cyclic"]
# (kind, num_nodes, group_size, compression, dim) -> seconds of the server in one round
ServerSeconds = Callable[[Kind, int, int, int, int], float]

LARGEST_GROUP = 128  # nodes; beyond, computation is multiplied by more than anybody pays
MEASURED_GROUP = 64  # nodes of the largest group that is decoded to be timed
MEASURED_NODES = 128  # of Draco's codes, likewise
MEASURED_COLUMNS = (1_000, 250_000)
MEASURED_COMPRESSION = 10
MEASURED_VECTORS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One admissible pair of group_size and compression.

    Attributes
    ----------
    num_nodes, byzantine, stragglers, group_size, compression, code, rtol
        Of the `SolonConfig`.
    bytes_out, bytes_in : int
        To and from all nodes in a round.
    seconds : RoundSeconds
        Of a round in which every node answers.
    """

    num_nodes: int
    byzantine: int
    stragglers: int
    group_size: int
    compression: int
    code: CodeName
    rtol: float
    bytes_out: int
    bytes_in: int
    seconds: RoundSeconds

    @property
    def num_groups(self) -> int:
        """P / r."""
        return self.num_nodes // self.group_size

    @property
    def batches_per_node(self) -> int:
        """Batches that every node computes in a round, r."""
        return self.group_size

    @property
    def bytes_per_node(self) -> int:
        """Bytes that a node sends in a round."""
        return self.bytes_in // self.num_nodes

    @property
    def certificate(self) -> float:
        """See `LinearCode.certificate`; computed when first asked for, which can take a second."""
        return _certificate(self.code, self.byzantine, self.compression, self.stragglers, self.group_size, self.rtol)

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
        for choice in self.choices:
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
        return network.transfer_seconds(num_nodes=self.num_nodes, bytes_out=row.bytes_out, bytes_in=row.bytes_in)


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

    Raises
    ------
    ConfigurationError
        If no group size is admissible (the message says what to change), or a number is out of its range.

    Notes
    -----
    Admissible: r divides P, 2 s + e + k <= r, and r <= 128. All schemes process P batches a round, as in the paper.
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
    if server_seconds is None:
        server_seconds = MeasuredServer(byzantine=byzantine, code=code, rtol=rtol, share_bytes=share_bytes)
    bytes_out = num_nodes * (dim * share_bytes if model_bytes is None else model_bytes)

    def seconds(kind: Kind, batches: int, size: int, compression: int, bytes_in: int) -> RoundSeconds:
        return round_seconds(
            network,
            num_nodes=num_nodes,
            batches_per_node=batches,
            batch_seconds=batch_seconds,
            bytes_out=bytes_out,
            bytes_in=bytes_in,
            server_seconds=server_seconds(kind, num_nodes, size, compression, dim),
            waited=False,
        )

    choices = []
    for size in sizes:
        for compression in range(1, size - 2 * byzantine - stragglers + 1):
            bytes_in = num_nodes * -(-dim // compression) * share_bytes
            choices.append(
                Choice(
                    num_nodes=num_nodes,
                    byzantine=byzantine,
                    stragglers=stragglers,
                    group_size=size,
                    compression=compression,
                    code=code,
                    rtol=rtol,
                    bytes_out=bytes_out,
                    bytes_in=bytes_in,
                    seconds=seconds("solon", size, size, compression, bytes_in),
                )
            )
    smallest = 2 * byzantine + stragglers + 1
    largest_repeated = -(-num_nodes // (num_nodes // smallest))
    whole = num_nodes * dim * share_bytes
    baselines: tuple[tuple[Kind, str, int, int, int], ...] = (
        ("no defence", "none", 1, 1, whole),
        ("draco-repetition", f"{byzantine} a group", largest_repeated, largest_repeated, whole),
        ("draco-cyclic", f"{byzantine} in all", num_nodes, smallest, 2 * whole),
    )
    return Plan(
        network=network,
        num_nodes=num_nodes,
        dim=dim,
        batch_seconds=batch_seconds,
        choices=tuple(sorted(choices, key=lambda choice: (choice.seconds.total, choice.group_size))),
        baselines=tuple(
            Baseline(
                name=name,
                tolerates=tolerates,
                num_nodes=num_nodes,
                group_size=size,
                batches_per_node=batches,
                bytes_out=bytes_out,
                bytes_in=bytes_in,
                seconds=seconds(name, batches, size, 1, bytes_in),
            )
            for name, tolerates, size, batches, bytes_in in baselines
        ),
    )


class MeasuredServer:
    """The server's seconds, measured in this process on random vectors.

    Parameters
    ----------
    byzantine : int
        s: as many shares are lies, in every group.
    code, rtol
        Of the `SolonConfig`.
    share_bytes : 4 or 8
        Of one entry of a share.
    threads : int
        Of torch while it measures.

    Notes
    -----
    Solon: a decode is timed (median of three, after a first one that fills caches) at 1,000 and 250,000 columns (fewer
    in groups of more than 16 nodes), once for every group size, with k = 10 or the largest that fits: a decode takes a
    part that does not depend on m (locating) and one that is linear in m and hardly depends on k. Groups of
    more than 64 nodes are not decoded but extrapolated by r (q + r). Averaging the groups is added.
    Draco: the same with one group of its repetition code, or all nodes of its cyclic code (more than 128 are
    extrapolated by their number). Honest vectors of a group are identical, as on equal machines: the repetition
    code's votes take several times as long where they differ by float noise.
    No defence: averaging is timed on 16 vectors, and taken to be linear in their length and number.
    """

    def __init__(
        self,
        *,
        byzantine: int,
        code: CodeName = "fourier",
        rtol: float = 1e-6,
        share_bytes: int = 4,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise ConfigurationError(f"threads must be at least 1; got threads={threads}.")
        self.byzantine = byzantine
        self.code: CodeName = code
        self.rtol = rtol
        self.dtype = torch.float32 if share_bytes == 4 else torch.float64
        self.threads = threads
        self._decoding: dict[tuple[Kind, int], tuple[float, float]] = {}  # by group size: seconds, and seconds a column
        self._averaging: float | None = None  # seconds a number

    def __call__(self, kind: Kind, num_nodes: int, group_size: int, compression: int, dim: int) -> float:
        """Return the server's seconds in one round."""
        if kind == "no defence":
            return self._average(num_nodes * dim)
        measured = min(group_size, MEASURED_GROUP if kind == "solon" else MEASURED_NODES)
        if (kind, measured) not in self._decoding:
            measure = self._measure_decoding if kind == "solon" else self._measure_draco
            self._decoding[kind, measured] = measure(kind, measured)
        fixed, per_column = self._decoding[kind, measured]
        if kind != "solon":
            return num_nodes / measured * (fixed + per_column * dim)
        growth = group_size * (NUM_PROJECTIONS + group_size) / (measured * (NUM_PROJECTIONS + measured))
        num_groups = num_nodes // group_size
        return num_groups * growth * (fixed + per_column * -(-dim // compression)) + self._average(num_groups * dim)

    def _average(self, numbers: int) -> float:
        if self._averaging is None:
            vectors = list(torch.ones(MEASURED_VECTORS, MEASURED_COLUMNS[1], dtype=self.dtype))
            total = torch.zeros_like(vectors[0])

            def average() -> None:
                for vector in vectors:
                    total.add_(vector)
                total.div_(len(vectors))

            with _threads(self.threads):
                self._averaging = _median_seconds(average) / (MEASURED_VECTORS * MEASURED_COLUMNS[1])
        return self._averaging * numbers

    def _measure_draco(self, kind: Kind, size: int) -> tuple[float, float]:
        lies = min(self.byzantine, (size - 1) // 2)
        code = CyclicCode(size, lies) if kind == "draco-cyclic" else RepetitionCode(size, lies)
        rng = torch.Generator().manual_seed(0)
        many = min(MEASURED_COLUMNS[1], MEASURED_COLUMNS[1] * 8 // size)
        if isinstance(code, CyclicCode):
            weights = np.stack([code.matrix.real, code.matrix.imag], axis=1).reshape(2 * size, size)
            gradients = torch.randn(size, many, dtype=self.dtype, generator=rng)
            vectors = (torch.from_numpy(weights).to(self.dtype) @ gradients).view(size, 2, many)
        else:
            vectors = torch.randn(many, dtype=self.dtype, generator=rng).repeat(size, 1)
        vectors[:lies] = torch.randn(vectors[:lies].shape, dtype=self.dtype, generator=rng)
        return self._time(lambda columns: code.decode(dict(enumerate(vectors[..., :columns])), generator=rng), many)

    def _measure_decoding(self, kind: Kind, size: int) -> tuple[float, float]:
        lies = min(self.byzantine, (size - 1) // 2)
        compression = min(MEASURED_COMPRESSION, size - 2 * lies)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CertificateWarning)
            code = make_code(self.code, lies, compression, 0, size, self.rtol)
        rng = torch.Generator().manual_seed(0)
        many = min(MEASURED_COLUMNS[1], MEASURED_COLUMNS[1] * 16 // size)  # as many numbers for every size
        shares = torch.from_numpy(code.generator).to(self.dtype) @ torch.randn(
            compression, many, dtype=self.dtype, generator=rng
        )
        shares[:lies] = torch.randn(lies, many, dtype=self.dtype, generator=rng)
        return self._time(lambda columns: code.decode(shares[:, :columns], generator=rng), many)

    def _time(self, decode: Callable[[int], object], many: int) -> tuple[float, float]:
        """Return the seconds of a decode that do not depend on the number of columns, and those of one column."""
        few = MEASURED_COLUMNS[0]
        with _threads(self.threads):
            short = _median_seconds(lambda: decode(few))
            long = _median_seconds(lambda: decode(many))
        per_column = max(long - short, 0.0) / (many - few)
        return max(short - few * per_column, 0.0), per_column


@lru_cache(maxsize=4096)
def _certificate(
    code: CodeName, byzantine: int, compression: int, stragglers: int, group_size: int, rtol: float
) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)
        return make_code(code, byzantine, compression, stragglers, group_size, rtol).certificate


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median_seconds(work: Callable[[], object]) -> float:
    """Return the median of three runs, after one that does not count."""
    work()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _admissible_sizes(num_nodes: int, byzantine: int, stragglers: int) -> list[int]:
    """Return the divisors of P that can be r, ascending."""
    for name, value, least in (("num_nodes", num_nodes, 1), ("byzantine", byzantine, 0), ("stragglers", stragglers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name} must be a whole number >= {least}; got {name}={value!r}.")
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
    if not isinstance(dim, int) or dim < 1:
        raise ConfigurationError(f"dim must be a whole number >= 1; got dim={dim!r}.")
    if not 0 <= batch_seconds < math.inf:
        raise ConfigurationError(f"batch_seconds must be a number >= 0; got batch_seconds={batch_seconds!r}.")
    if code not in get_args(CodeName):
        raise ConfigurationError(f"code must be one of {', '.join(get_args(CodeName))}; got code={code!r}.")
    if not 0 < rtol < 1:
        raise ConfigurationError(f"rtol must be between 0 and 1; got rtol={rtol!r}; 1e-6 suits float32 shares.")
    if share_bytes not in (4, 8):
        raise ConfigurationError(f"share_bytes must be 4 or 8 (float32 or float64); got share_bytes={share_bytes!r}.")
    if model_bytes is not None and model_bytes < 0:
        raise ConfigurationError(f"model_bytes must be at least 0; got model_bytes={model_bytes}.")
