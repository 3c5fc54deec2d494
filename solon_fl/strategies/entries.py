"""The entries of a model: which of them are coded, and which of those are not moved by gradients."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError
from solon_fl.strategies.factories import name_of
from solon_fl.wire import BufferNames, check_dtype, check_storage, is_continuous

__all__ = ["Entry", "buffer_names"]


def buffer_names(model: torch.nn.Module) -> BufferNames:
    """Return the floating-point and complex entries of a model's ``state_dict`` that no gradient moves.

    These are buffers such as BatchNorm's running statistics, and frozen parameters, which the returned object also
    lists in its attribute ``frozen``. Pass it to `SolonStrategy` as ``buffers``.

    Raises
    ------
    ConfigurationError
        If an entry is not a tensor, or has a dtype that Flower can't send (bfloat16, float8).

    Examples
    --------
    >>> buffer_names(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    ('1.running_mean', '1.running_var')
    """
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"the model's state_dict must hold only tensors, as in Flower; got {name}, a {name_of(value)}; "
                "let get_extra_state return a tensor, or build the extra state in build_model and don't save it."
            )
        check_dtype(f"the model's {name}", value)
    check_storage(state)
    names = [name for name, value in state.items() if is_continuous(value) and not value.requires_grad]
    return BufferNames(names, [name for name in names if isinstance(state[name], torch.nn.Parameter)])


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the model that is coded.

    `shape` is the shape of its place in the vector, where a complex number takes two real ones. `dtype` is the entry's
    own. `start` is its offset in the vector, and `coded` its offset in a direction, where every tensor is padded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    coded: int

    @property
    def size(self) -> int:
        """The number of real values it takes."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """The offset of the next entry in the vector."""
        return self.start + self.size

    def taken_from(self, vector: Tensor) -> Tensor:
        """Return the entry with the shape and dtype that it has in the model."""
        values = vector[self.start : self.stop].view(self.shape)
        if self.dtype.is_complex:
            values = torch.complex(values[..., 0], values[..., 1])
        return values.to(self.dtype)
