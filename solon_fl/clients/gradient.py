"""Conversion between a torch model and the flat vector that is encoded."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from solon_fl.clients.replicas import hand_over
from solon_fl.clients.static import check_untrained
from solon_fl.coding.sections import padded
from solon_fl.errors import ConfigurationError
from solon_fl.wire import WHOLE_NUMBERS, check_storage, is_continuous, real_view, trusted_tensor

__all__ = ["GradientVector", "change_of", "flatten", "load_model"]


def load_model(model: nn.Module, arrays: ArrayRecord, buffers: Sequence[str], device: torch.device) -> None:
    """Load the server's parameters and buffers into a model, and move it to a device.

    Raises
    ------
    ConfigurationError
        If the model's entries differ from the server's in name or order, or if its entries without a gradient are not
        those in `buffers`.
    """
    state = model.state_dict(keep_vars=True)
    if list(state) != list(arrays):
        odd = sorted(set(state) ^ set(arrays)) or "their order"
        raise ConfigurationError(
            f"the node's model is not the server's: they differ in {odd}; build the same model on both, or, if the "
            "server's has no trained or no frozen entries, put solon_fl.clients.downlink_mod on your function."
        )
    own = [name for name, value in state.items() if is_continuous(value) and not value.requires_grad]
    if own != list(buffers):
        raise ConfigurationError(
            f"the model's buffers are {own}, but the server was told {list(buffers)}; "
            "construct SolonStrategy with buffers=buffer_names(model)."
        )
    check_storage(state)
    model.load_state_dict({name: trusted_tensor(array) for name, array in arrays.items()})
    model.to(device)


class GradientVector:
    """A flat vector in which autograd accumulates the gradients of batches; a model's replicas take turns on them.

    Entries have the order of the state_dict. Each call of `backward` is for the next batch and adds the gradient of its
    loss. Parameters have a ``.grad`` during that call only, so ``zero_grad()`` elsewhere does no harm. Autograd itself
    adds the gradients of the first replica. Those of the others are added when it is the first's turn again, in the
    order of the batches, so that the bits are those of a single replica. On leaving the ``with`` block, the change of
    each buffer since entry is written to its place, even if the buffer was rebound.

    Parameters
    ----------
    replicas : sequence of Module
        Equal models, each on a device of its own; see `replicas_of`.
    multiple : int
        Each tensor is padded with zeros to a multiple of this many entries (k, if the vector is encoded).
    sent : ArrayRecord, optional
        The server's model. Parameters are compared with it on leaving.
    frozen : collection of str
        Frozen entries, which have no place in the vector.

    Raises
    ------
    ConfigurationError
        On leaving: if a parameter was rebound or changed in place (a gradient can't express that), if an entry that the
        server treats as a buffer requires a gradient, if a buffer's shape changed, or if a buffer's new value can't be
        recovered from its change.

    Attributes
    ----------
    unreached : tuple of str
        After the ``with`` block: parameters that no loss depends on. Their gradient is 0, because a share can't express
        None.
    vector : Tensor, (d,) or longer if padded, on the first replica's device
        float64 if the model has a float64 or complex128 entry, else float32. A complex number is two entries.

    Notes
    -----
    Memory: the vector, and the gradient of one batch on each device except the first.
    """

    def __init__(
        self,
        replicas: Sequence[nn.Module],
        multiple: int = 1,
        sent: ArrayRecord | None = None,
        frozen: Collection[str] = frozenset(),
    ) -> None:
        # A tied parameter has several names. Each of its places gets the whole gradient, so that the server's copies
        # move together.
        self._replicas = replicas
        self._multiple = multiple
        state = replicas[0].state_dict(keep_vars=True)
        self._entries = {n: v for n, v in state.items() if is_continuous(v) and n not in frozen}
        values = [real_view(value.detach()) for value in self._entries.values()]
        double = any(value.dtype == torch.float64 for value in values)
        self.vector = torch.zeros(
            sum(padded(value.numel(), multiple) for value in values),
            dtype=torch.float64 if double else torch.float32,
            device=values[0].device,
        )
        self.unreached: tuple[str, ...] = ()
        self._num_batches = 0
        self._trained = [_trained_entries(replica) for replica in replicas]
        self._before: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # each parameter's gradients, added up
        self._parts: list[tuple[str, Tensor]] = []  # gradients that are still to be added, in this order
        self._reached: set[str] = set()
        self._sent = sent

    def __enter__(self) -> "GradientVector":
        for name, value, place in self._places():
            if not value.requires_grad:
                self._before[name] = value.detach().clone()
            elif name in self._trained[0]:  # autograd requires the parameter's own dtype
                self._sums[name] = place if value.dtype == self.vector.dtype else torch.zeros_like(value)
        self._forget_gradients()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._add_parts()
            self._collect()
        self._forget_gradients()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the next batch's loss, including parts of it that ``.grad`` already holds."""
        turn = self._num_batches % len(self._replicas)
        self._num_batches += 1
        if len(self._replicas) > 1:  # before backward, so that the next batch need not wait for this gradient
            hand_over(self._replicas[turn], self._replicas[(turn + 1) % len(self._replicas)])
        trained, take = self._trained[turn], self._note if turn == 0 else self._put_aside
        for name, value in trained.items():
            if value.grad is not None:
                self._put_aside(name, value)
        if turn == 0:
            self._add_parts()
            for name, value in trained.items():
                value.grad = self._sums[name]
        hooks = [
            value.register_post_accumulate_grad_hook(partial(take, name))  # type: ignore[no-untyped-call]  # torch's
            for name, value in trained.items()
            if value.requires_grad  # the loss may have frozen it for the time being
        ]
        try:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
        finally:
            for hook in hooks:
                hook.remove()
        for value in trained.values():
            value.grad = None

    def _note(self, name: str, _: Tensor) -> None:
        self._reached.add(name)

    def _put_aside(self, name: str, value: Tensor) -> None:
        assert value.grad is not None
        self._parts.append((name, value.grad))
        value.grad = None

    def _add_parts(self) -> None:
        """Add the parts one by one, as autograd itself adds a gradient in parts (as reentrant checkpoints give it)."""
        for name, part in self._parts:
            self._sums[name].add_(part.to(self.vector.device))
            self._reached.add(name)
        self._parts.clear()

    def _forget_gradients(self) -> None:
        for trained in self._trained:
            for value in trained.values():
                value.grad = None

    def _collect(self) -> None:
        """Write the entries of the vector that autograd did not write itself."""
        last = (self._num_batches - 1) % len(self._replicas)
        if 0 < last < len(self._replicas) - 1:
            hand_over(self._replicas[last], self._replicas[0])
        now = self._replicas[0].state_dict(keep_vars=True)
        self._check_parameters()
        names = {value: name for name, value in self._trained[0].items()}
        trained = {name: names[value] for name, value in self._entries.items() if name not in self._before}
        self.unreached = tuple(name for name, first in trained.items() if first not in self._reached)
        for name, _, place in self._places():
            if name in self._before:
                _check_buffer(name, now[name], self._before[name])
                place.copy_(change_of(real_view(now[name].detach()), real_view(self._before[name])))
            elif self._sums[trained[name]].data_ptr() != place.data_ptr():
                place.copy_(real_view(self._sums[trained[name]]))

    def _check_parameters(self) -> None:
        """Raise ConfigurationError if a parameter was rebound or changed in place."""
        for replica, trained in zip(self._replicas, self._trained, strict=True):
            now = replica.state_dict(keep_vars=True)
            sent: Mapping[str, Array] = self._sent or {}
            compared = [name for name in trained if name in sent]
            differ = [_differ(trained[name], trusted_tensor(sent[name])) for name in compared]
            flags = torch.stack(differ).tolist() if differ else []  # waits for the GPU once
            changed = {name for name, flag in zip(compared, flags, strict=True) if flag}
            for name, value in trained.items():
                if name in changed:
                    raise ConfigurationError(
                        "batch_loss must not change parameters in place, as no gradient can express that; it changed "
                        f"{name!r}; let the server do so after each step (optimizer.register_step_post_hook), or "
                        "compute in mode='update'."
                    )
                if now[name] is not value:
                    raise ConfigurationError(
                        f"batch_loss must not replace parameters, as no gradient can express that; it replaced "
                        f"{name!r}; make it a buffer (register_buffer), or compute in mode='update'."
                    )

    def scale_gradients(self, factor: float) -> None:
        """Multiply the parameters' gradients, but not the buffers' changes, by a factor."""
        for name, _, place in self._places():
            if name not in self._before:
                place.mul_(factor)

    def _places(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        start = 0
        for name, value in self._entries.items():
            shape = real_view(value.detach()).shape
            yield name, value, self.vector[start : start + shape.numel()].view(shape)
            start += padded(shape.numel(), self._multiple)


def _trained_entries(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries that gradients move: each tensor once, under the first of its names."""
    found: dict[Tensor, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if is_continuous(value) and value.requires_grad:
            found.setdefault(value, name)
    return {name: value for value, name in found.items()}


def _differ(value: Tensor, other: Tensor) -> Tensor:
    """Return whether two tensors of the same shape differ in any bit, computed on the first one's device."""
    one, two = (real_view(tensor.detach().to(value.device, value.dtype)).contiguous() for tensor in (value, other))
    bits = WHOLE_NUMBERS[one.element_size()]
    return (one.view(bits) != two.view(bits)).any()


def _check_buffer(name: str, now: Tensor, before: Tensor) -> None:
    """Check that a buffer's new value can be recovered from its change."""
    check_untrained(name, now)
    _check_shape(name, now, before)
    after, start = real_view(now.detach()), real_view(before)
    if after.numel() == 0 or not bool(after.isfinite().all()):
        return  # nothing can be lost, or the run diverges, which is reported elsewhere
    lost = (start + change_of(after, start) - after).abs().amax()
    if not bool(lost <= max(1e-3, 4 * torch.finfo(after.dtype).eps) * after.abs().amax()):  # NaN, too
        raise ConfigurationError(
            f"a buffer's change must determine its new value; {name!r} starts at {float(start.abs().amax()):.3g}, too "
            "far from its value after batch_loss; start it near its usual values, or register it with "
            "persistent=False."
        )


def _check_shape(name: str, now: Tensor, before: Tensor) -> None:
    if now.shape != before.shape:
        raise ConfigurationError(
            f"a buffer must keep its shape; batch_loss changed that of {name!r} from {tuple(before.shape)} to "
            f"{tuple(now.shape)}; give it its final shape in build_model, or register it with persistent=False."
        )


def flatten(tensors: Mapping[str, Tensor], frozen: Collection[str] = frozenset()) -> Tensor:
    """Return the floating-point and complex tensors of a mapping, except frozen ones, in its order as one vector.

    The vector is float64 if one of them is float64 or complex128, else float32.
    """
    chosen = [value for name, value in tensors.items() if is_continuous(value) and name not in frozen]
    parts = [real_view(value.detach()).reshape(-1) for value in chosen]
    if not parts:
        raise ConfigurationError("expected at least one floating-point or complex array; got none.")
    double = any(part.dtype == torch.float64 for part in parts)
    return torch.cat([part.to(torch.float64 if double else torch.float32) for part in parts])


def change_of(after: Tensor, before: Tensor) -> Tensor:
    """Return after - before, but 0 where nothing changed, even at infinite (a causal mask's -inf) or NaN entries."""
    change = after - before
    if not bool(change.isfinite().all()):
        change[(after == before) | (after.isnan() & before.isnan())] = 0
    return change
