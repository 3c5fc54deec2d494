"""The server's copy of the model: a flat vector, an optimizer, and Flower records made from it."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from solon_fl.config import Mode
from solon_fl.errors import ConfigurationError
from solon_fl.wire import is_continuous, real_view, to_array, trusted_tensor

__all__ = ["OptimizerFactory", "ServerModel", "buffer_names"]

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def buffer_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the floating-point and complex entries of a model's state_dict that no gradient moves.

    Those are BatchNorm's running statistics and the like, and frozen parameters: what `SolonStrategy` takes
    as `buffers`.

    Examples
    --------
    >>> buffer_names(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    ('1.running_mean', '1.running_var')
    """
    state = model.state_dict(keep_vars=True)
    return tuple(name for name, value in state.items() if is_continuous(value) and not value.requires_grad)


@dataclass(frozen=True, slots=True)
class _Entry:
    """`shape` is that of its place in the vector, where a complex number is two real ones; `dtype` is its own."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def taken_from(self, vector: Tensor) -> Tensor:
        """Return the entry as it was when it came."""
        values = vector[self.start : self.stop].view(self.shape)
        if self.dtype.is_complex:
            values = torch.complex(values[..., 0], values[..., 1])
        return values.to(self.dtype)


class ServerModel:
    """The model as one vector of all floating-point and complex entries, in the record's order.

    Parameters
    ----------
    arrays : ArrayRecord
        The initial model. Integer and boolean entries (such as BatchNorm's num_batches_tracked) stay as they
        are: no node is asked about them.
    buffers : collection of str
        Names of floating-point or complex entries that no gradient moves. Nodes send their change, which is added.
    optimizer : callable
        Makes a torch optimizer of a list of tensors, such as functools.partial(torch.optim.SGD, lr=0.1). It
        gets one tensor per parameter; for a complex one pairs of real numbers, (..., 2), as torch's own optimizers
        take it.
    """

    def __init__(self, arrays: ArrayRecord, buffers: Collection[str], optimizer: OptimizerFactory) -> None:
        unknown = sorted(set(buffers) - set(arrays))
        if unknown:
            raise ConfigurationError(f"buffers must name entries of the model; got {unknown}, not in it.")
        self._entries: list[_Entry] = []
        self._static: dict[str, Array] = {}
        self._order = list(arrays)
        tensors = []
        for name, array in arrays.items():
            tensor = trusted_tensor(array)
            if not is_continuous(tensor):
                self._static[name] = array
                continue
            values = real_view(tensor)
            self._entries.append(_Entry(name, tuple(values.shape), tensor.dtype, self.dim))
            tensors.append(values.reshape(-1))
        if not tensors:
            raise ConfigurationError("the model must have floating-point entries; got none in initial_arrays.")
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        self.vector = torch.cat(tensors).to(torch.float64 if double else torch.float32)
        self.buffers = tuple(entry.name for entry in self._entries if entry.name in set(buffers))
        self._parameters = list(self._views(self.vector, buffers=False))
        self._buffers = list(self._views(self.vector, buffers=True))
        self._optimizer = optimizer(self._parameters) if self._parameters else None

    @property
    def dim(self) -> int:
        """d, the length of the vector."""
        return self._entries[-1].stop if self._entries else 0

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each entry of the vector, by name, in its order; a complex one is (..., 2) and real."""
        return {entry.name: (entry.shape, entry.dtype.to_real()) for entry in self._entries}

    @property
    def is_buffer(self) -> Tensor:
        """Where buffers stand in the vector, (dim,) bool."""
        mask = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        for view in self._views(mask, buffers=True):
            view.fill_(True)
        return mask

    def to_record(self) -> ArrayRecord:
        """Return the model as a new ArrayRecord, in the dtypes and the order in which it came."""
        arrays = dict(self._static)
        for entry in self._entries:
            arrays[entry.name] = to_array(entry.taken_from(self.vector))
        return ArrayRecord({name: arrays[name] for name in self._order})

    def state(self) -> dict[str, Any]:
        """Return all that changes in training, and the static entries: what `restore` takes. Nothing is copied."""
        return {
            "vector": self.vector,
            "static": {name: trusted_tensor(array) for name, array in self._static.items()},
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned for a model of the same layout and an optimizer of the same kind.

        Raises
        ------
        ValueError
            If its arrays have other names, shapes or dtypes; other errors if it is something else altogether.
        """
        static = {name: trusted_tensor(array) for name, array in self._static.items()}
        if state["static"].keys() != static.keys():
            raise ValueError(f"the static entries should be {sorted(static)[:5]}; got {sorted(state['static'])[:5]}")
        for name, value, ours in (
            ("vector", state["vector"], self.vector),
            *((name, state["static"][name], value) for name, value in static.items()),
        ):
            if (value.shape, value.dtype) != (ours.shape, ours.dtype):  # copy_ would broadcast
                raise ValueError(f"{name} should be {ours.dtype} of shape {list(ours.shape)}")
        self.vector.copy_(state["vector"])
        self._static = {name: to_array(value) for name, value in state["static"].items()}
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])

    @property
    def optimizer_settings(self) -> dict[str, str]:
        """The optimizer's class and the settings that it was made with, in words."""
        if self._optimizer is None:
            return {}
        settings = {name: str(value) for name, value in sorted(self._optimizer.defaults.items())}
        return {"class": type(self._optimizer).__name__, **settings}

    def to_vector(self, arrays: ArrayRecord) -> Tensor:
        """Return another record of the same entries as a (dim,) vector."""
        values = [real_view(trusted_tensor(arrays[entry.name])).reshape(-1) for entry in self._entries]
        return torch.cat(values).to(self.vector)

    def step(self, direction: Tensor, mode: Mode) -> None:
        """Let the optimizer take one step, and add the change of the buffers.

        Parameters
        ----------
        direction : Tensor, (dim,)
            Where a parameter stands: the gradient, or in mode "update" the change, whose negative the
            optimizer takes for the gradient (SGD with lr=1 then adds it as it is). Where a buffer stands:
            its change. It may be overwritten.
        """
        for buffer, change in zip(self._buffers, self._views(direction, buffers=True), strict=True):
            buffer += change
        if self._optimizer is None:
            return
        if mode == "update":
            direction.neg_()
        for parameter, gradient in zip(self._parameters, self._views(direction, buffers=False), strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _views(self, vector: Tensor, buffers: bool) -> Iterator[Tensor]:
        for entry in self._entries:
            if (entry.name in self.buffers) == buffers:
                yield vector[entry.start : entry.stop].view(entry.shape)
