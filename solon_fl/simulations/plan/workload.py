"""What a plan is made for: the nodes, the gradient, and the network."""

from dataclasses import dataclass, replace
from typing import get_args

from solon_fl.checks import check_between, check_one_of, check_whole
from solon_fl.config import CodeName
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import Network

__all__ = ["LARGEST_GROUP", "Workload"]

MOST_NODES = 1_000_000
LARGEST_DIM = 10**13
LONGEST_BATCH = 1e6  # seconds
LARGEST_GROUP = 128  # nodes; larger groups multiply the computation by more than anybody would pay


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The nodes, the gradient and the network that a plan is made for.

    Parameters
    ----------
    num_nodes, byzantine, stragglers, code, rtol, referee
        Fields of the `SolonConfig`.
    dim : int
        d, entries of the gradient, without the few by which tensors are padded.
    batch_seconds : float
        Seconds that a node takes for one batch.
    network : Network
        One of `NETWORKS`, or your own.
    share_bytes : 4 or 8
        Bytes of one entry of a share, for float32 or float64.
    model_bytes : int, optional
        Bytes of the model, as sent to one node. Default: `dim` times `share_bytes`. In reality there are some 128 more
        for every array of the model, and its buffers.

    Raises
    ------
    ConfigurationError
        If a number is out of range.
    """

    num_nodes: int
    byzantine: int
    dim: int
    batch_seconds: float
    network: Network
    stragglers: int = 0
    code: CodeName = "fourier"
    rtol: float = 1e-6
    share_bytes: int = 4
    model_bytes: int | None = None
    referee: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_nodes", 1), ("byzantine", 0), ("stragglers", 0)):
            check_whole(name, getattr(self, name), least)
        if self.num_nodes > MOST_NODES:
            raise ConfigurationError(f"num_nodes must be at most {MOST_NODES}; got num_nodes={self.num_nodes}.")
        if not isinstance(self.dim, int) or not 1 <= self.dim <= LARGEST_DIM:
            raise ConfigurationError(f"dim must be a whole number from 1 to {LARGEST_DIM:.0e}; got dim={self.dim!r}.")
        if not 0 <= self.batch_seconds <= LONGEST_BATCH:
            raise ConfigurationError(
                f"batch_seconds must be from 0 to {LONGEST_BATCH:.0e}; got batch_seconds={self.batch_seconds!r}."
            )
        check_one_of("code", self.code, get_args(CodeName))
        check_between("rtol", self.rtol, 0, 1, "1e-6 suits float32 shares")
        if self.share_bytes not in (4, 8):
            raise ConfigurationError(
                f"share_bytes must be 4 or 8 (float32 or float64); got share_bytes={self.share_bytes!r}."
            )
        if self.model_bytes is not None and self.model_bytes < 0:
            raise ConfigurationError(f"model_bytes must be at least 0; got model_bytes={self.model_bytes}.")

    @property
    def smallest_group(self) -> int:
        """Nodes of the smallest group, with or without digests: 2 s + e + 1, or s + e + 1 with a referee."""
        return self.byzantine + self.stragglers + 1 if self.referee else self.smallest_group_without_referee

    @property
    def smallest_group_without_referee(self) -> int:
        """2 s + e + 1, which is also the smallest group of Draco's repetition code."""
        return 2 * self.byzantine + self.stragglers + 1

    def bears(self, group_size: int, byzantine: int) -> bool:
        """Return whether groups of a size tolerate another s, at least with k = 1."""
        return group_size >= replace(self, byzantine=byzantine).smallest_group

    @property
    def bytes_of_model(self) -> int:
        """Bytes of the model, as sent to one node."""
        return self.dim * self.share_bytes if self.model_bytes is None else self.model_bytes

    def group_sizes(self) -> list[int]:
        """Return the divisors of P that can be r, ascending.

        Raises
        ------
        ConfigurationError
            If there is none. The message says what to change.
        """
        smallest = self.smallest_group
        divisors = [size for size in range(1, self.num_nodes + 1) if self.num_nodes % size == 0]
        sizes = [size for size in divisors if smallest <= size <= LARGEST_GROUP]
        if not sizes:
            most = max(size for size in divisors if size <= LARGEST_GROUP) - self.stragglers - 1
            most, formula = (most, "byzantine") if self.referee else (most // 2, "2*byzantine")
            lower = f"lower byzantine to at most {most}, or " if 0 <= most < self.byzantine else ""
            more = (self.num_nodes // smallest + 1) * smallest
            raise ConfigurationError(
                f"group_size must divide num_nodes, be at least {formula} + stragglers + 1 and at most "
                f"{LARGEST_GROUP}; got num_nodes={self.num_nodes} with the divisors {', '.join(map(str, divisors))}, "
                f"byzantine={self.byzantine}, stragglers={self.stragglers}, so that group_size must be at least "
                f"{smallest}; {lower}use {more} nodes."
            )
        return sizes
