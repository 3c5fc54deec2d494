"""Vectors to attack: plain gradients, and the shares of a code."""

import torch
from torch import Tensor

from solon_fl.coding import FourierCode, RealDecoder

CODE = FourierCode(group_size=7, compression=3)
DECODER = RealDecoder(CODE, byzantine=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors_like_gradients(
    num_nodes: int = 7, dim: int = 30, dtype: torch.dtype = torch.float64, spread: float = 0.3
) -> Tensor:
    """Return vectors around a common one, as the gradients of different batches are."""
    rng = seeded(1)
    common = torch.randn(dim, generator=rng, dtype=torch.float64)
    return (common + spread * torch.randn(num_nodes, dim, generator=rng, dtype=torch.float64)).to(dtype)


def coded_shares() -> Tensor:
    gradient = torch.randn(60, generator=seeded(2), dtype=torch.float64)
    return torch.stack([CODE.encode(gradient, slot) for slot in range(CODE.group_size)])
