"""The paper's code: a Vandermonde code on real nodes."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from solon_fl.coding._types import ComplexArray, FloatArray
from solon_fl.errors import ConfigurationError

from .code import RealCode

__all__ = ["VandermondeCode"]


class VandermondeCode(RealCode):
    """Share j is the value at the real node w_j of the polynomial whose coefficients are the gradient's k chunks.

    See `Code` for the other parameters and errors, and `Decoder` for the guarantees.

    Parameters
    ----------
    nodes : sequence of r distinct floats, optional
        The nodes w. Default: the Chebyshev nodes of [-1, 1], the best conditioned of the usual choices.

    Notes
    -----
    This code is for comparison with the paper; prefer `FourierCode`. Real Vandermonde matrices are so ill-conditioned
    that from about s = 5, k = 10 on, honest float32 shares can't be distinguished from lies.

    Differs from the paper: rows are scaled to norm 1, which changes no guarantee and gives the shares similar norms.

    Examples
    --------
    >>> import torch
    >>> from solon_fl import RealDecoder, VandermondeCode
    >>> code = VandermondeCode(group_size=4, compression=2)
    >>> gradient = torch.tensor([1.0, 2.0, 3.0])
    >>> shares = {slot: code.encode(gradient, slot) for slot in range(4)}
    >>> shares[2] += 1
    >>> RealDecoder(code, byzantine=1).decode(shares, dim=3).corrupt_slots
    (2,)

    References
    ----------
    Chen et al., arXiv:2110.01595.
    """

    def __init__(self, *, group_size: int, compression: int, nodes: Sequence[float] | None = None) -> None:
        super().__init__(group_size=group_size, compression=compression)
        self._nodes = None if nodes is None else np.array(nodes, dtype=np.float64)
        if self._nodes is not None:
            distinct = len(set(self._nodes.tolist()))
            if not np.isfinite(self._nodes).all() or not len(self._nodes) == distinct == group_size:
                raise ConfigurationError(
                    f"nodes must be group_size={group_size} distinct finite numbers; got nodes={nodes!r}."
                )

    @cached_property
    def generator(self) -> FloatArray:
        """G, (r, k) float64: w_j^l, each row divided by its norm."""
        return self._powers / self.multipliers[:, None].real

    @cached_property
    def points(self) -> ComplexArray:
        """w, the real nodes."""
        if self._nodes is not None:
            return self._nodes
        return np.cos((2 * np.arange(self.group_size) + 1) * np.pi / (2 * self.group_size))

    @cached_property
    def multipliers(self) -> ComplexArray:
        """The norms of the rows before scaling."""
        return np.asarray(np.linalg.norm(self._powers, axis=1))

    @property
    def _powers(self) -> FloatArray:
        return np.asarray(np.vander(self.points.real, self.compression, increasing=True), dtype=np.float64)
