"""Between a torch model and the flat vector that is encoded."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from solon_fl.coding.sections import padded
from solon_fl.errors import ConfigurationError
from solon_fl.wire import is_continuous, real_view, trusted_tensor

__all__ = ["GradientVector", "change_of", "flatten", "load_model"]


def load_model(model: nn.Module, arrays: ArrayRecord, buffers: Sequence[str], device: torch.device) -> None:
    """Put the server's parameters and buffers into a model, on a device.

    Raises
    ------
    ConfigurationError
        If the model's entries are not those that the server sent, in that order, or `buffers`, what the
        server takes for entries that no gradient moves, are not those of the model.
    """
    state = model.state_dict(keep_vars=True)
    if list(state) != list(arrays):
        odd = sorted(set(state) ^ set(arrays)) or "their order"
        raise ConfigurationError(f"the node's model is not the server's: they differ in {odd}.")
    own = [name for name, value in state.items() if is_continuous(value) and not value.requires_grad]
    if own != list(buffers):
        raise ConfigurationError(
            f"the model's buffers are {own}, but the server was told {list(buffers)}; "
            "construct SolonStrategy with buffers=buffer_names(model)."
        )
    model.load_state_dict({name: trusted_tensor(array) for name, array in arrays.items()})
    model.to(device)


class GradientVector:
    """A flat vector into which autograd writes a model's gradients directly.

    Entries stand as in the state_dict. `backward` adds the gradient of a loss; only meanwhile is every parameter's
    .grad a view of the vector, so that zero_grad() elsewhere does no harm. On leaving the `with` block the buffers'
    change since entry is written to their places, also of those that were bound anew.

    Parameters
    ----------
    model : nn.Module
        On its device, with the server's weights.
    multiple : int
        Each tensor is padded with zeros to a multiple of that many entries: of k, if the vector is encoded.

    Raises
    ------
    ConfigurationError
        On leaving, if a parameter was bound anew (a gradient can't say that), or a buffer has another shape.

    Attributes
    ----------
    unreached : tuple of str
        After the `with` block: parameters of which no loss had a gradient. Theirs is 0, as no share can say None.
    vector : Tensor, (d,) or longer if padded, on the model's device
        float64 if the model has a float64 or complex128 entry, else float32. A complex number is two entries.
    """

    def __init__(self, model: nn.Module, multiple: int = 1) -> None:
        # Tied parameters have several names; each place gets the whole gradient, so that the copies on the
        # server move together.
        self._model = model
        self._multiple = multiple
        self._entries = {n: v for n, v in model.state_dict(keep_vars=True).items() if is_continuous(v)}
        values = [real_view(value.detach()) for value in self._entries.values()]
        double = any(value.dtype == torch.float64 for value in values)
        self.vector = torch.zeros(
            sum(padded(value.numel(), multiple) for value in values),
            dtype=torch.float64 if double else torch.float32,
            device=values[0].device,
        )
        self.unreached: tuple[str, ...] = ()
        self._reached: set[Tensor] = set()
        self._before: dict[str, Tensor] = {}
        self._sums: dict[Tensor, Tensor] = {}  # of the gradients of each parameter

    def __enter__(self) -> "GradientVector":
        for name, value, place in self._places():
            if not value.requires_grad:
                self._before[name] = value.detach().clone()
            else:  # autograd insists on the parameter's own dtype
                self._sums[value] = place if value.dtype == self.vector.dtype else torch.zeros_like(value)
            value.grad = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._collect()
        for value in self._entries.values():
            value.grad = None

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, and what .grad holds of it already: gradients of its parts."""
        for value, total in self._sums.items():
            if value.grad is not None:
                total += value.grad
                self._reached.add(value)
            value.grad = total
        add = self._reached.add
        hooks = [value.register_post_accumulate_grad_hook(add) for value in self._sums]  # type: ignore[no-untyped-call]
        try:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
        finally:
            for hook in hooks:
                hook.remove()
        for value in self._sums:
            value.grad = None

    def _collect(self) -> None:
        """Write what autograd did not write itself."""
        now = self._model.state_dict(keep_vars=True)
        trained = {name: value for name, value in self._entries.items() if value in self._sums}
        self.unreached = tuple(name for name, value in trained.items() if value not in self._reached)
        for name, value, place in self._places():
            if name in self._before:
                _check_shape(name, now[name], value)
                place.copy_(change_of(real_view(now[name].detach()), real_view(self._before[name])))
                continue
            if now[name] is not value:
                raise ConfigurationError(
                    f"batch_loss must not replace parameters, as no gradient says that; it replaced {name!r}; make it "
                    "a buffer (register_buffer), or compute in mode='update'."
                )
            if self._sums[value].data_ptr() != place.data_ptr():
                place.copy_(real_view(self._sums[value]))

    def scale_gradients(self, factor: float) -> None:
        """Multiply the parameters' gradients, not the buffers' changes."""
        for _, value, place in self._places():
            if value.requires_grad:
                place.mul_(factor)

    def _places(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        start = 0
        for name, value in self._entries.items():
            shape = real_view(value.detach()).shape
            yield name, value, self.vector[start : start + shape.numel()].view(shape)
            start += padded(shape.numel(), self._multiple)


def _check_shape(name: str, now: Tensor, before: Tensor) -> None:
    if now.shape != before.shape:
        raise ConfigurationError(
            f"a buffer must keep its shape; {name!r} had {tuple(before.shape)}, and has {tuple(now.shape)} after "
            "batch_loss; give it its final shape in build_model, or register it with persistent=False."
        )


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the floating-point and complex tensors of a mapping, in its order, as one float32 (or float64) vector."""
    parts = [real_view(value.detach()).reshape(-1) for value in tensors.values() if is_continuous(value)]
    if not parts:
        raise ConfigurationError("expected at least one floating-point or complex array; got none.")
    double = any(part.dtype == torch.float64 for part in parts)
    return torch.cat([part.to(torch.float64 if double else torch.float32) for part in parts])


def change_of(after: Tensor, before: Tensor) -> Tensor:
    """Return after - before, but 0 where nothing changed, be it infinite (a causal mask's -inf) or NaN."""
    change = after - before
    if not bool(change.isfinite().all()):
        change[(after == before) | (after.isnan() & before.isnan())] = 0
    return change
