"""Memory for results of the gradient's length."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["new_vector"]

HUGE = 2**22  # bytes, from which numpy asks Linux for huge pages


def new_vector(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a vector whose content is not set.

    Of numpy, where that is large: it asks Linux for huge pages, of which writing for the first time takes a third.
    """
    if device.type != "cpu" or size * dtype.itemsize < HUGE:
        return torch.empty(size, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=str(dtype).removeprefix("torch.")))
