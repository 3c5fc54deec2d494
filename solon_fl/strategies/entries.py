"""The entries of a model: which are coded, and which of those no gradient moves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError
from solon_fl.strategies.factories import name_of
from solon_fl.wire import BufferNames, check_dtype, check_storage, is_continuous

__all__ = ["Entry", "buffer_names"]


def buffer_names(model: torch.nn.Module) -> BufferNames:
    """Return the floating-point and complex entries of a model's state_dict that no gradient moves.

    Those are BatchNorm's running statistics and the like, and frozen parameters, which it knows to be `frozen`: what
    `SolonStrategy` takes as `buffers`.

    Raises
    ------
    ConfigurationError
        If an entry has a dtype that Flower can't send (bfloat16, float8), or is no tensor.

    Examples
    --------
    >>> buffer_names(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    ('1.running_mean', '1.running_var')
    """
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"the model's state_dict must hold tensors only, as Flower can; got {name}, a {name_of(value)}; "
                "let get_extra_state return a tensor, or build the extra state in build_model and don't save it."
            )
        check_dtype(f"the model's {name}", value)
    check_storage(state)
    names = [name for name, value in state.items() if is_continuous(value) and not value.requires_grad]
    return BufferNames(names, [name for name in names if isinstance(state[name], torch.nn.Parameter)])


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the model that is coded.

    `shape` is that of its place in the vector, where a complex number is two real ones; `dtype` is its own. `start` is
    where it stands in the vector, `coded` where in a direction, in which every tensor is padded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    coded: int

    @property
    def size(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """Where the next entry stands in the vector."""
        return self.start + self.size

    def taken_from(self, vector: Tensor) -> Tensor:
        """Return the entry as it was when it came."""
        values = vector[self.start : self.stop].view(self.shape)
        if self.dtype.is_complex:
            values = torch.complex(values[..., 0], values[..., 1])
        return values.to(self.dtype)
