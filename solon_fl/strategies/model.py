"""The server's copy of the model: a flat vector, its optimizer, and the Flower records made from it."""

from collections.abc import Collection, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.lr_scheduler import LRScheduler

from solon_fl.coding import Code
from solon_fl.coding.sections import Sections, padded, spread
from solon_fl.config import Mode
from solon_fl.errors import ConfigurationError
from solon_fl.strategies.entries import Entry
from solon_fl.strategies.factories import (
    OptimizerFactory,
    SchedulerFactory,
    make_optimizer,
    make_scheduler,
    share_of_an_update,
)
from solon_fl.wire import (
    BufferNames,
    is_continuous,
    is_counter,
    model_sha256,
    real_view,
    to_array,
    trusted_tensor,
)

__all__ = ["ServerModel"]


class ServerModel:
    """The model as one vector of all floating-point and complex entries that are not frozen, in the record's order.

    Parameters
    ----------
    arrays : ArrayRecord
        The initial model. Integer, boolean and frozen entries stay as they are, because nodes don't send them: a node
        whose loss changes one reports an error. Each step adds the group's number of batches to a normalisation layer's
        ``num_batches_tracked``, as if the layer were used once per batch.
    buffers : collection of str
        Names of floating-point or complex entries that no gradient moves. Nodes send the change of those that are not
        frozen, which is added.
    optimizer : callable
        Makes a torch optimizer from a list of tensors, such as ``functools.partial(torch.optim.SGD, lr=0.1)``. The list
        has one tensor per parameter. A complex parameter is given as pairs of real numbers, (..., 2), as torch's own
        optimizers treat it.
    scheduler : callable, optional
        Makes a torch learning-rate scheduler from that optimizer. It is stepped after every step of the optimizer.
    code : Code, optional
        The code that directions are decoded from, in which tensors may be padded. It determines the padding and
        `sections`.
    """

    def __init__(
        self,
        arrays: ArrayRecord,
        buffers: Collection[str],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        code: Code | None = None,
    ) -> None:
        self.buffers = BufferNames.of(buffers)
        unknown = sorted(set(self.buffers) - set(arrays))
        if unknown:
            raise ConfigurationError(f"buffers must name entries of the model; got {unknown}, which it does not have.")
        self._entries: list[Entry] = []
        self._static: dict[str, Array] = {}
        self._counters: list[str] = []
        self._fixed_sha256: str | None = None
        self._order = list(arrays)
        tensors: list[Tensor] = []
        coded = 0
        for name, array in arrays.items():
            if name in self.frozen:
                self._static[name] = array
                continue
            tensor = trusted_tensor(array)
            if not is_continuous(tensor):
                self._static[name] = array
                if is_counter(name, tensor.dtype):
                    self._counters.append(name)
                continue
            values = real_view(tensor)
            self._entries.append(Entry(name, tuple(values.shape), tensor.dtype, self.dim, coded))
            coded += padded(values.numel(), 1 if code is None else code.multiple)
            tensors.append(values.reshape(-1))
        if not tensors:
            raise ConfigurationError(
                "the model must have floating-point entries that are not frozen; got none in initial_arrays."
            )
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        self.vector = torch.cat(tensors).to(torch.float64 if double else torch.float32)
        if code is not None:
            code.check_dtype(self.vector.dtype)
        self._code = code
        self._parameters = [self._place_of(entry) for entry in self._chosen(buffers=False)]
        self._buffers = [self._place_of(entry) for entry in self._chosen(buffers=True)]
        self._optimizer = make_optimizer(optimizer, self._parameters) if self._parameters else None
        self._scheduler: LRScheduler | None = None
        if scheduler is not None and self._optimizer is not None:
            self._scheduler = make_scheduler(scheduler, self._optimizer)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the entries that nothing moves."""
        return self.buffers.frozen

    @property
    def frozen_sha256(self) -> str:
        """The `model_sha256` of the frozen entries."""
        return model_sha256(self.to_record(self.frozen))

    @property
    def dim(self) -> int:
        """d, the length of the vector."""
        return self._entries[-1].stop if self._entries else 0

    @property
    def sections(self) -> Sections:
        """The tensors of a direction, in the code's columns; their classes are "parameters" and "buffers"."""
        return self.sections_of(self._code)

    def sections_of(self, code: Code | None) -> Sections:
        """Return the `sections` of this model with another code."""
        buffers = set(self.buffers)
        tensors = [(entry.size, "buffers" if entry.name in buffers else "parameters") for entry in self._entries]
        return Sections.of(tensors, compression=1) if code is None else code.sections(tensors)

    def is_usable(self, direction: Tensor) -> bool:
        """Return whether a direction is finite for all parameters, and makes no buffer NaN.

        A buffer may become infinite, like a causal mask's -inf. It can't become finite again, as no change does that.
        """
        if bool(direction.sum().isfinite()):  # the sum is not finite if an entry is not
            return True
        finite = all(bool(gradient.isfinite().all()) for gradient in self._parts(direction, buffers=False))
        changes = zip(self._buffers, self._parts(direction, buffers=True), strict=True)
        return finite and not any(
            bool((change.isnan() | (change + buffer).isnan() & ~buffer.isnan()).any()) for buffer, change in changes
        )

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of the vector's entries, by name, in order; a complex one is (..., 2) and real."""
        return {entry.name: (entry.shape, entry.dtype.to_real()) for entry in self._entries}

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of the entries that gradients move."""
        return frozenset(entry.name for entry in self._chosen(buffers=False))

    @property
    def is_buffer(self) -> Tensor:
        """Mask of the buffers in the vector, (dim,) bool."""
        mask = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        for entry in self._chosen(buffers=True):
            mask[entry.start : entry.stop] = True
        return mask

    def to_record(self, names: Collection[str] | None = None) -> ArrayRecord:
        """Return the model, or its entries of these names, as a new ArrayRecord in the original dtypes."""
        entries = {entry.name: entry for entry in self._entries}
        chosen = self._order if names is None else [name for name in self._order if name in set(names)]
        return ArrayRecord(
            {
                name: to_array(entries[name].taken_from(self.vector)) if name in entries else self._static[name]
                for name in chosen
            }
        )

    def trained(self) -> dict[str, Tensor]:
        """Return the entries that gradients move by name, in their own dtypes; they may share the vector's memory."""
        return {entry.name: entry.taken_from(self.vector) for entry in self._chosen(buffers=False)}

    def trained_values(self) -> dict[str, Tensor]:
        """Return the same entries as views of the vector: in its dtype, a complex one as (..., 2)."""
        return {entry.name: self._place_of(entry) for entry in self._chosen(buffers=False)}

    @property
    def names(self) -> list[str]:
        """Names of all entries, in order."""
        return list(self._order)

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the entries that never change: frozen ones, and integers that are not counters."""
        return frozenset(self._static) - set(self._counters)

    @property
    def fixed_sha256(self) -> str:
        """The `model_sha256` of the fixed entries."""
        if self._fixed_sha256 is None:
            self._fixed_sha256 = model_sha256(self.to_record(self.fixed))
        return self._fixed_sha256

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` takes: the optimizer, and the entries that are not frozen. No copies."""
        return {
            "vector": self.vector,
            "static": self._state_of_static(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            **({} if self._scheduler is None else {"scheduler": self._scheduler.state_dict()}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the result of `state` from a model of the same layout with the same kind of optimizer.

        Raises
        ------
        ValueError
            If its arrays have other names, shapes or dtypes. Other exceptions if it is something else altogether.
        """
        static = self._state_of_static()
        if state["static"].keys() != static.keys():
            raise ValueError(f"the static entries should be {sorted(static)[:5]}; got {sorted(state['static'])[:5]}")
        for name, value, ours in (
            ("vector", state["vector"], self.vector),
            *((name, state["static"][name], value) for name, value in static.items()),
        ):
            if (value.shape, value.dtype) != (ours.shape, ours.dtype):  # copy_ would broadcast
                raise ValueError(f"{name} should be {ours.dtype} of shape {list(ours.shape)}")
        self.vector.copy_(state["vector"])
        self._static |= {name: to_array(value) for name, value in state["static"].items()}
        self._fixed_sha256 = None
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])

    def _state_of_static(self) -> dict[str, Tensor]:
        return {name: trusted_tensor(array) for name, array in self._static.items() if name not in self.frozen}

    @property
    def share_of_an_update(self) -> float:
        """See the function `share_of_an_update`."""
        return 1.0 if self._optimizer is None else share_of_an_update(type(self._optimizer), self._optimizer.defaults)

    @property
    def optimizer_settings(self) -> dict[str, str]:
        """The classes of the optimizer and the scheduler, and the optimizer's non-default settings, all as text.

        Defaults and settings that only the class itself can set are left out: they may differ in other versions of
        torch.
        """
        if self._optimizer is None:
            return {}
        scheduler = {} if self._scheduler is None else {"scheduler": type(self._scheduler).__name__}
        arguments = signature(type(self._optimizer)).parameters
        takes_any = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
        settings = {}
        for name, value in sorted(self._optimizer.defaults.items()):
            known = arguments.get(name)
            if takes_any if known is None else str(value) != str(known.default):
                settings[name] = str(value)
        return {"class": type(self._optimizer).__name__, **settings, **scheduler}

    def as_direction(self, vector: Tensor) -> Tensor:
        """Return a vector, (dim,), in the form of a decoded direction, (k m,), padded as the code requires."""
        code = self._code
        if code is None:
            return vector
        padded_vector = spread(vector, [entry.size for entry in self._entries], code.multiple)
        missing = -padded_vector.numel() % code.compression
        return pad(padded_vector, (0, missing)) if missing else padded_vector

    def to_vector(self, arrays: ArrayRecord) -> Tensor:
        """Return another record of the same entries as a (dim,) vector."""
        values = [real_view(trusted_tensor(arrays[entry.name])).reshape(-1) for entry in self._entries]
        return torch.cat(values).to(self.vector)

    def take_over(self, arrays: ArrayRecord, ours: Mapping[str, bytes]) -> list[str]:
        """Take over the entries of a record that differ from the one that `to_record` returned, and return their names.

        Parameters
        ----------
        arrays : ArrayRecord
            The model as changed by another strategy.
        ours : mapping
            The data of every array as `to_record` returned it. Unchanged entries keep their precision here.

        Raises
        ------
        ConfigurationError
            If the record is not one of this model.
        """
        if list(arrays) != self._order:
            odd = sorted(set(arrays) ^ set(self._order))[:5] or "their order"
            raise ConfigurationError(f"the new model must have the entries of the previous one; they differ in {odd}.")
        changed = [name for name, array in arrays.items() if array.data != ours.get(name)]
        entries = {entry.name: entry for entry in self._entries}
        for name in changed:
            value = real_view(trusted_tensor(arrays[name]))
            entry = entries.get(name)
            before = real_view(trusted_tensor(self._static[name])) if entry is None else self._place_of(entry)
            shape = tuple(before.shape)
            if tuple(value.shape) != shape or value.is_floating_point() != before.is_floating_point():
                raise ConfigurationError(
                    f"the new model must have the shapes of the previous one; got {name} of {value.dtype} with "
                    f"shape={tuple(value.shape)}, which was {shape}."
                )
            if entry is None:
                self._static[name] = arrays[name]
                self._fixed_sha256 = None
            else:
                before.copy_(value)
        return changed

    def step(
        self, direction: Tensor, mode: Mode, num_batches: int = 0, unreached: Collection[str] = frozenset()
    ) -> None:
        """Let the optimizer and the scheduler take one step, and add the change of the buffers.

        Parameters
        ----------
        direction : Tensor, (dim,), or longer if the model's tensors are padded (see `sections`)
            For parameters: the gradient, or in mode "update" the change, whose negative the optimizer gets as the
            gradient (SGD with ``lr=1`` then adds the whole change). For buffers: the change. It may be overwritten.
        num_batches : int
            Number of batches that each node computed one after the other, which normalisation layers count.
        unreached : collection of str
            Parameters without a gradient, which don't move. As in plain torch, these are the parameters that no loss
            depends on.
        """
        for name in self._counters:
            self._static[name] = to_array(trusted_tensor(self._static[name]) + num_batches)
        for buffer, change in zip(self._buffers, self._parts(direction, buffers=True), strict=True):
            buffer += change
        if self._optimizer is None:
            return
        if mode == "update":
            direction.neg_()
        parts = zip(self._chosen(buffers=False), self._parameters, self._parts(direction, buffers=False), strict=True)
        for entry, parameter, gradient in parts:
            parameter.grad = None if entry.name in unreached else gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            self._scheduler.step()

    def _parts(self, direction: Tensor, buffers: bool) -> Iterator[Tensor]:
        for entry in self._chosen(buffers):
            yield direction[entry.coded : entry.coded + entry.size].view(entry.shape)

    def _place_of(self, entry: Entry) -> Tensor:
        """Return the view of an entry in the vector."""
        return self.vector[entry.start : entry.stop].view(entry.shape)

    def _chosen(self, buffers: bool) -> list[Entry]:
        return [entry for entry in self._entries if (entry.name in self.buffers) == buffers]
