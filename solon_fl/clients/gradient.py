"""Between a torch model and the flat vector that is encoded."""

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
        raise ConfigurationError(
            f"the node's model is not the server's: they differ in {odd}; build the same on both, or if the server's "
            "has no trained or no frozen entries, put solon_fl.clients.downlink_mod on your function."
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
    """A flat vector into which autograd writes the gradients of batches, which a model's replicas take in turn.

    Entries stand as in the state_dict. Each call of `backward` is for the next batch, and adds the gradient of its
    loss; only meanwhile has a parameter a .grad, so that zero_grad() elsewhere does no harm. The first replica's
    gradients are added by autograd itself, the others' when it is the first's turn again, in the order of the batches:
    the bits are those of one replica. On leaving the `with` block the buffers' change since entry is written to their
    places, also of those that were bound anew.

    Parameters
    ----------
    replicas : sequence of Module
        Equal models, each on a device of its own; see `replicas_of`.
    multiple : int
        Each tensor is padded with zeros to a multiple of that many entries: of k, if the vector is encoded.
    sent : ArrayRecord, optional
        The server's model, which parameters are compared with on leaving.
    frozen : collection of str
        Entries that have no place in the vector, as nothing moves them.

    Raises
    ------
    ConfigurationError
        On leaving, if a parameter was bound anew or changed in place (a gradient can't say that), if an entry that the
        server takes for a buffer is to be trained, if a buffer has another shape, or if its change does not say what it
        is now.

    Attributes
    ----------
    unreached : tuple of str
        After the `with` block: parameters of which no loss had a gradient. Theirs is 0, as no share can say None.
    vector : Tensor, (d,) or longer if padded, on the first replica's device
        float64 if the model has a float64 or complex128 entry, else float32. A complex number is two entries.

    Notes
    -----
    Memory: the vector, and on every device but the first the gradient of one batch.
    """

    def __init__(
        self,
        replicas: Sequence[nn.Module],
        multiple: int = 1,
        sent: ArrayRecord | None = None,
        frozen: Collection[str] = frozenset(),
    ) -> None:
        # Tied parameters have several names; each place gets the whole gradient, so that the copies on the
        # server move together.
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
        self._sums: dict[str, Tensor] = {}  # of the gradients of each parameter
        self._parts: list[tuple[str, Tensor]] = []  # gradients that wait to be added, in this order
        self._reached: set[str] = set()
        self._sent = sent

    def __enter__(self) -> "GradientVector":
        for name, value, place in self._places():
            if not value.requires_grad:
                self._before[name] = value.detach().clone()
            elif name in self._trained[0]:  # autograd insists on the parameter's own dtype
                self._sums[name] = place if value.dtype == self.vector.dtype else torch.zeros_like(value)
        self._forget_gradients()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._add_parts()
            self._collect()
        self._forget_gradients()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the next batch's loss, and what .grad holds of it already: gradients of its parts."""
        turn = self._num_batches % len(self._replicas)
        self._num_batches += 1
        if len(self._replicas) > 1:  # already, as the next batch need not wait for this one's gradient
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
        """Add what was put aside, one by one, as autograd adds what comes in parts (of reentrant checkpoints, say)."""
        for name, part in self._parts:
            self._sums[name].add_(part.to(self.vector.device))
            self._reached.add(name)
        self._parts.clear()

    def _forget_gradients(self) -> None:
        for trained in self._trained:
            for value in trained.values():
                value.grad = None

    def _collect(self) -> None:
        """Write what autograd did not write itself."""
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
        """Refuse parameters that were bound anew or changed in place."""
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
                        "batch_loss must not change parameters in place, as no gradient says that; it changed "
                        f"{name!r}; let the server do so after each step (optimizer.register_step_post_hook), or "
                        "compute in mode='update'."
                    )
                if now[name] is not value:
                    raise ConfigurationError(
                        f"batch_loss must not replace parameters, as no gradient says that; it replaced {name!r}; make "
                        "it a buffer (register_buffer), or compute in mode='update'."
                    )

    def scale_gradients(self, factor: float) -> None:
        """Multiply the parameters' gradients, not the buffers' changes."""
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
    """Return what gradients move, each tensor once, by the first of its names."""
    found: dict[Tensor, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if is_continuous(value) and value.requires_grad:
            found.setdefault(value, name)
    return {name: value for value, name in found.items()}


def _differ(value: Tensor, other: Tensor) -> Tensor:
    """Return whether two tensors of one shape have different bits, where the first is."""
    one, two = (real_view(tensor.detach().to(value.device, value.dtype)).contiguous() for tensor in (value, other))
    bits = WHOLE_NUMBERS[one.element_size()]
    return (one.view(bits) != two.view(bits)).any()


def _check_buffer(name: str, now: Tensor, before: Tensor) -> None:
    """Check that a buffer's change says what it is now."""
    check_untrained(name, now)
    _check_shape(name, now, before)
    after, start = real_view(now.detach()), real_view(before)
    if after.numel() == 0 or not bool(after.isfinite().all()):
        return  # nothing can be lost; or the run diverges, and is told so
    lost = (start + change_of(after, start) - after).abs().amax()
    if not bool(lost <= max(1e-3, 4 * torch.finfo(after.dtype).eps) * after.abs().amax()):  # NaN, too
        raise ConfigurationError(
            f"a buffer's change must say what it is now; {name!r} starts at {float(start.abs().amax()):.3g}, which is "
            "too far from what batch_loss makes of it; start it near its usual values, or register it with "
            "persistent=False."
        )


def _check_shape(name: str, now: Tensor, before: Tensor) -> None:
    if now.shape != before.shape:
        raise ConfigurationError(
            f"a buffer must keep its shape; {name!r} had {tuple(before.shape)}, and has {tuple(now.shape)} after "
            "batch_loss; give it its final shape in build_model, or register it with persistent=False."
        )


def flatten(tensors: Mapping[str, Tensor], frozen: Collection[str] = frozenset()) -> Tensor:
    """Return the floating-point and complex tensors of a mapping but the frozen ones, in its order, as one vector.

    float32, or float64 if one of them is.
    """
    chosen = [value for name, value in tensors.items() if is_continuous(value) and name not in frozen]
    parts = [real_view(value.detach()).reshape(-1) for value in chosen]
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
