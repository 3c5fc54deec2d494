"""The base of Draco's codes, in which 2s + 1 or more nodes compute each batch and send whole gradients.

In a round with n nodes and n batches, every node computes 2s + 1 or more batches and sends one vector of the gradient's
length. From all vectors the server recovers the mean over the batches, even if s of the nodes lie.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from solon_fl.coding._types import FloatArray
from solon_fl.coding.real.projection import BLOCK, LARGEST_NORM, SMALLEST_NUMBER, Projector
from solon_fl.errors import ConfigurationError

__all__ = ["FAILED", "DracoCode", "DracoDecoded", "Received", "receive", "smallest_norm", "weighted_sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DracoDecoded:
    """The outcome of decoding one round.

    Attributes
    ----------
    gradient : Tensor or None
        Mean gradient over the n batches, (d,), dtype and device of the vectors; None if the decode failed.
    corrupt_nodes : tuple of int
        Nodes that lied, or whose vectors were missing, malformed or not finite, ascending; () if the decode failed.
    residual : float
        Norm of the disagreement between the vectors kept (with the cyclic code, an estimate); inf if the decode failed.
    tolerance : float
        The largest residual that counts as noise; nan if the decode failed.
    """

    gradient: Tensor | None = field(repr=False)
    corrupt_nodes: tuple[int, ...]
    residual: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether there is a gradient."""
        return self.gradient is not None


FAILED = DracoDecoded(gradient=None, corrupt_nodes=(), residual=math.inf, tolerance=math.nan)


@dataclass(frozen=True, slots=True)
class Received:
    """The finite vectors that arrived, by node. The arrays have a row of zeros for every other node."""

    vectors: dict[int, Tensor]
    projected: FloatArray  # (n, q), or (n, 2q): real parts, then imaginary parts
    norms: FloatArray  # (n,)
    floor: float  # norms up to this are negligible
    rounding: float  # the dtype's relative rounding error


class DracoCode(ABC):
    """The base class of Draco's two codes, with n nodes, n batches and s liars.

    Parameters
    ----------
    num_nodes : int
        n, the number of nodes in the run and of batches in a round, >= 2 s + 1.
    byzantine : int
        s, the number of nodes that may lie, >= 0.
    rtol : float
        Largest relative difference between honest vectors, due to rounding. 1e-6 suits float32 vectors of nodes with
        hardware and software of the same kind.

    Raises
    ------
    ConfigurationError
        If num_nodes < 2 s + 1, or a number is out of its range.

    Notes
    -----
    Draco has no erasures: a vector that is missing, malformed or not finite counts as one of the s lies.
    """

    is_complex: bool
    """Whether a vector has shape (2, d), with real and imaginary parts, rather than (d,)."""

    def __init__(self, num_nodes: int, byzantine: int, *, rtol: float = 1e-6) -> None:
        for name, value, least in (("num_nodes", num_nodes, 1), ("byzantine", byzantine, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(f"{name} must be a whole number >= {least}; got {name}={value!r}.")
        if num_nodes < 2 * byzantine + 1:
            raise ConfigurationError(
                "num_nodes must be at least 2*byzantine + 1; "
                f"got num_nodes={num_nodes}, byzantine={byzantine}; raise num_nodes to {2 * byzantine + 1}."
            )
        if not 0 < rtol < 1:
            raise ConfigurationError(f"rtol must be between 0 and 1; got rtol={rtol!r}; 1e-6 suits float32 vectors.")
        self.num_nodes = num_nodes
        self.byzantine = byzantine
        self.rtol = rtol

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_nodes}, {self.byzantine}, rtol={self.rtol:g})"

    @abstractmethod
    def batches(self, node: int) -> tuple[int, ...]:
        """Return the numbers of the batches that this node computes."""

    @abstractmethod
    def weights(self, node: int) -> npt.NDArray[np.complex128]:
        """Return one weight per batch; the node sends the sum of its batches' gradients with these weights."""

    def decode(self, vectors: Mapping[int, Tensor], *, generator: torch.Generator | None = None) -> DracoDecoded:
        """Recover the mean gradient over all batches, and name the nodes that lied.

        Parameters
        ----------
        vectors : mapping from node to Tensor
            (d,), or (2, d) if `is_complex`; float32 or float64, all on one device. Nodes not in the mapping, vectors
            with NaN or inf (or norms beyond 1e150), and vectors whose shape or dtype differs from that of most vectors
            count as lies.
        generator : torch.Generator, optional
            Draws the projection. Only for reproducible simulations: by default, the projection is drawn from fresh
            entropy after the vectors have arrived, so that no node can know it.

        Returns
        -------
        DracoDecoded
            Failures are reported in the result, never as exceptions.

        Raises
        ------
        ConfigurationError
            If `vectors` names nodes that do not exist.

        Notes
        -----
        Guarantee: see the class. Extra memory: the result, and 2 rows of 4096 float64 for each real vector of length d.
        """
        unknown = sorted(node for node in vectors if not 0 <= node < self.num_nodes)
        if unknown:
            raise ConfigurationError(
                f"nodes must be in 0..{self.num_nodes - 1} (num_nodes={self.num_nodes}); got nodes={unknown}."
            )
        kinds = {
            node: (vector.shape, vector.dtype, vector.device)
            for node, vector in vectors.items()
            if vector.dtype in (torch.float32, torch.float64) and vector.numel() > 0
            if vector.shape[:-1] == ((2,) if self.is_complex else ()) and vector.dim() > 0
        }
        if not kinds:
            return FAILED
        commonest, _ = Counter(kinds.values()).most_common(1)[0]
        alike = {node: vectors[node].detach() for node in sorted(kinds) if kinds[node] == commonest}
        return self._decode(alike, generator)

    @abstractmethod
    def _decode(self, vectors: dict[int, Tensor], generator: torch.Generator | None) -> DracoDecoded:
        """Decode one or more vectors of one shape, dtype and device; they need not be finite."""


def receive(
    vectors: dict[int, Tensor],
    num_nodes: int,
    generator: torch.Generator | None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Received:
    """Project the vectors and drop those that are not finite; see `Projector.project` for `observe`."""
    parts = [part for vector in vectors.values() for part in vector.reshape(-1, vector.shape[-1])]
    projected, norms = Projector(generator).project(parts, observe)
    rows = np.zeros((num_nodes, projected.size // len(vectors)))
    sizes = np.zeros(num_nodes)
    rows[list(vectors)] = projected.reshape(len(vectors), -1)
    sizes[list(vectors)] = np.hypot.reduce(norms.reshape(len(vectors), -1), axis=1)
    usable = sizes < LARGEST_NORM  # false for NaN
    rows[~usable], sizes[~usable] = 0, 0
    return Received(
        vectors={node: vector for node, vector in vectors.items() if usable[node]},
        projected=rows,
        norms=sizes,
        rounding=torch.finfo(parts[0].dtype).eps,
        floor=smallest_norm(parts[0]),
    )


def smallest_norm(vector: Tensor) -> float:
    """Return the norm up to which a vector of this dtype and length is negligible."""
    return max(torch.finfo(vector.dtype).smallest_normal, SMALLEST_NUMBER) * math.sqrt(vector.shape[-1])


def weighted_sum(weights: FloatArray, vectors: Sequence[Tensor]) -> Tensor:
    """Return weights @ vectors, computed in float64, in the vectors' dtype."""
    total = torch.empty_like(vectors[0])
    factor = torch.from_numpy(weights).to(total.device)
    for start in range(0, total.numel(), BLOCK):
        total[start : start + BLOCK] = factor @ torch.stack([v[start : start + BLOCK] for v in vectors]).double()
    return total
