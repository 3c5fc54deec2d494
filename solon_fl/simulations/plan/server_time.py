"""Measures how long the server decodes or aggregates, for the planner."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from solon_fl.baselines import CyclicCode, RepetitionCode
from solon_fl.baselines.garbage import quick_collections
from solon_fl.coding import CertificateWarning
from solon_fl.config import CodeName, make_code, make_decoder
from solon_fl.downlink.codec import apply_patch, make_patch
from solon_fl.simulations.plan.aggregating import AGGREGATORS, Aggregator, aggregation
from solon_fl.simulations.plan.workload import Workload
from solon_fl.simulations.threads import check_threads, limited_threads

__all__ = ["Kind", "MeasuredServer", "ServerSeconds"]

Patching = Literal["patch made", "patch applied"]
Kind = Literal["solon", "no defence", "draco-repetition", "draco-cyclic", Aggregator, Patching]
# (kind, num_nodes, group_size, compression, dim) -> seconds of the server in one round
ServerSeconds = Callable[[Kind, int, int, int, int], float]

MEASURED_GROUP = 64  # nodes of the largest group whose decode is timed
MEASURED_NODES = 128  # likewise, of the baselines
MEASURED_COLUMNS = (1_000, 250_000)
MEASURED_COMPRESSION = 10
MEASURED_VECTORS = 16
MEASURED_PATCH = 4_000_000


class MeasuredServer:
    """The server's seconds, measured in this process on random vectors.

    Parameters
    ----------
    byzantine : int
        s, the number of lies in every group. With a referee there are none, because the referee deals with lies.
    code, rtol, referee
        Fields of the `SolonConfig`.
    share_bytes : 4 or 8
        Bytes of one entry of a share.
    threads : int
        Threads of torch and numpy during the measurement.

    Notes
    -----
    What is timed is the median of three runs, after a first one that fills caches.

    - Solon: a decode is timed once for every group size, at 1,000 and 250,000 columns (fewer in groups of more than 16
      nodes), with k = 10 or the largest k that fits. A part of its time does not depend on the number of columns
      (locating), and a part is linear in it and hardly depends on k. Groups of more than 64 nodes are extrapolated: the
      columns by r, locating by r^4. The time to average the groups is added.
    - Draco: likewise, with one group of its repetition code or all nodes of its cyclic code. More than 128 nodes are
      extrapolated by their number. Honest vectors of a group are identical, as on equal machines. The votes of the
      repetition code take several times as long where vectors differ by float noise.
    - Signum, MultiKrum and Bulyan: likewise, with all nodes. More than 128 are extrapolated by their number, which is
      too little for MultiKrum's distances.
    - No defence: averaging is timed on 16 vectors, and taken to be linear in their length and number.
    - Patches: a patch of 4,000,000 numbers is timed, and taken to be linear in their number.
    """

    def __init__(
        self,
        *,
        byzantine: int,
        code: CodeName = "fourier",
        rtol: float = 1e-6,
        share_bytes: int = 4,
        threads: int = 1,
        referee: bool = False,
    ) -> None:
        check_threads(threads)
        self.byzantine = byzantine
        self.code: CodeName = code
        self.rtol = rtol
        self.dtype = torch.float32 if share_bytes == 4 else torch.float64
        self.threads = threads
        self.referee = referee
        self._decoding: dict[tuple[Kind, int], tuple[float, float]] = {}  # by group size: seconds, and seconds a column
        self._averaging: float | None = None  # seconds a number
        self._patching: dict[Kind, float] = {}  # likewise

    @classmethod
    def of(cls, workload: Workload, threads: int = 1) -> "MeasuredServer":
        """Return the measured server of a workload."""
        return cls(
            byzantine=workload.byzantine,
            code=workload.code,
            rtol=workload.rtol,
            share_bytes=workload.share_bytes,
            threads=threads,
            referee=workload.referee,
        )

    def __call__(self, kind: Kind, num_nodes: int, group_size: int, compression: int, dim: int) -> float:
        """Return the server's seconds in one round."""
        if kind == "no defence":
            return self._average(num_nodes * dim)
        if kind in ("patch made", "patch applied"):
            return self._patch(kind) * dim
        measured = min(group_size, MEASURED_GROUP if kind == "solon" else MEASURED_NODES)
        if (kind, measured) not in self._decoding:
            self._decoding[kind, measured] = self._measure(kind, measured)
        fixed, per_column = self._decoding[kind, measured]
        if kind != "solon":
            return num_nodes / measured * (fixed + per_column * dim)
        growth = group_size / measured
        num_groups = num_nodes // group_size
        decode = growth**4 * fixed + growth * per_column * -(-dim // compression)
        return num_groups * decode + self._average(num_groups * dim)

    def _average(self, numbers: int) -> float:
        if self._averaging is None:
            vectors = list(torch.ones(MEASURED_VECTORS, MEASURED_COLUMNS[1], dtype=self.dtype))
            total = torch.zeros_like(vectors[0])

            def average() -> None:
                for vector in vectors:
                    total.add_(vector)
                total.div_(len(vectors))

            with limited_threads(self.threads):
                self._averaging = _median_seconds(average) / (MEASURED_VECTORS * MEASURED_COLUMNS[1])
        return self._averaging * numbers

    def _patch(self, kind: Kind) -> float:
        if not self._patching:
            rng = torch.Generator().manual_seed(0)
            model, held = torch.randn(2, MEASURED_PATCH, dtype=self.dtype, generator=rng)
            patch = make_patch([model], [held]) or b""
            with limited_threads(self.threads):
                made = _median_seconds(lambda: make_patch([model], [held.clone()]))
                applied = _median_seconds(lambda: apply_patch(patch, [held]))
            self._patching = {"patch made": made / MEASURED_PATCH, "patch applied": applied / MEASURED_PATCH}
        return self._patching[kind]

    def _measure(self, kind: Kind, size: int) -> tuple[float, float]:
        if kind == "solon":
            return self._measure_decoding(size)
        if kind in AGGREGATORS:
            return self._measure_aggregator(kind, size)
        return self._measure_draco(kind, size)

    def _measure_aggregator(self, name: Aggregator, size: int) -> tuple[float, float]:
        rng = torch.Generator().manual_seed(0)
        many = min(MEASURED_COLUMNS[1], MEASURED_COLUMNS[1] * 8 // size)
        vectors = torch.randn(size, many, dtype=self.dtype, generator=rng)
        works = {
            columns: aggregation(name, vectors[:, :columns], self.byzantine) for columns in (MEASURED_COLUMNS[0], many)
        }
        return self._time(lambda columns: works[columns](), many)

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

    def _measure_decoding(self, size: int) -> tuple[float, float]:
        lies = min(self.byzantine, size - 1 if self.referee else (size - 1) // 2)
        compression = min(MEASURED_COMPRESSION, size - (1 if self.referee else 2) * lies)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CertificateWarning)
            decoder = make_decoder(make_code(self.code, size, compression), lies, 0, self.rtol, self.referee)
        rng = torch.Generator().manual_seed(0)
        many = min(MEASURED_COLUMNS[1], MEASURED_COLUMNS[1] * 16 // size)  # equally many numbers for every size
        gradient = torch.randn(compression * many, dtype=self.dtype, generator=rng)
        shares = torch.stack([decoder.code.encode(gradient, slot) for slot in range(size)])
        if not self.referee:
            shares[:lies] = torch.randn(lies, many, dtype=self.dtype, generator=rng)
        return self._time(lambda columns: decoder.decode(shares[:, :columns], generator=rng), many)

    def _time(self, decode: Callable[[int], object], many: int) -> tuple[float, float]:
        """Return the seconds of a decode that do not depend on the number of columns, and those of one column."""
        few = MEASURED_COLUMNS[0]
        with limited_threads(self.threads), quick_collections():
            short = _median_seconds(lambda: decode(few))
            long = _median_seconds(lambda: decode(many))
        per_column = max(long - short, 0.0) / (many - few)
        return max(short - few * per_column, 0.0), per_column


def _median_seconds(work: Callable[[], object]) -> float:
    """Return the median seconds of three runs, after one that does not count."""
    work()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
