"""Checks that training does not change the model's entries that no share carries.

These are frozen weights, integers and booleans. The server leaves them as they are, except that it adds the number of
the round's batches to ``num_batches_tracked``.
"""

from collections.abc import Collection

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from solon_fl.errors import ConfigurationError
from solon_fl.wire import COUNTER, WHOLE_NUMBERS, is_continuous, is_counter, real_view

__all__ = ["StaticEntries", "check_returned_static", "check_untrained", "sum_of_bits"]

PIECE = 1 << 20  # entries that are summed at a time, so that their weights take little memory

REMEDY = (  # short, because the server's log shows 300 characters
    "keep it in a float buffer, compute it from batch.round, set it on the server's model before the run, or register "
    "it with persistent=False."
)

REMEDY_FROZEN = (
    "make it a buffer (register_buffer), or freeze nothing: SolonStrategy(..., buffers=tuple(buffer_names(model)))."
)


class StaticEntries:
    """A context manager that checks, on leaving, that entries which no share carries are what the server expects.

    The ``num_batches_tracked`` of a BatchNorm with a momentum, or of an InstanceNorm, is not checked, because torch
    doesn't read it.

    Parameters
    ----------
    model : Module
        The model, with the server's state.
    num_batches : int
        Number of batches that are computed inside.
    frozen : collection of str
        Floating-point and complex entries that the server treats as frozen. Only a sum over the bits of each is kept,
        weighted by place.

    Raises
    ------
    ConfigurationError
        On leaving, naming the first entry that differs.
    """

    def __init__(self, model: nn.Module, num_batches: int, frozen: Collection[str] = frozenset()) -> None:
        self._model = model
        self._num_batches = num_batches
        self._frozen = frozen
        self._expected: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def __enter__(self) -> "StaticEntries":
        unread = _unread_counters(self._model)
        for name, value in self._model.state_dict().items():
            if isinstance(value, Tensor) and not is_continuous(value) and name not in unread:
                self._expected[name] = value + self._num_batches if is_counter(name, value.dtype) else value.clone()
        self._sums = self._sums_of_frozen()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._check_frozen()
            self._check()

    def _sums_of_frozen(self) -> dict[str, Tensor]:
        state = self._model.state_dict(keep_vars=True)
        return {name: sum_of_bits(state[name]) for name in self._frozen if name in state}

    def _check_frozen(self) -> None:
        if not self._frozen:
            return
        for name, value in self._model.state_dict(keep_vars=True).items():
            if name in self._frozen:
                check_untrained(name, value)
        now = self._sums_of_frozen()
        names = [name for name in self._sums if name in now]
        flags = torch.stack([(self._sums[n] != now[n]).any() for n in names]).tolist() if names else []
        changed = {name for name, flag in zip(names, flags, strict=True) if flag} | (self._sums.keys() - now.keys())
        if changed:
            raise ConfigurationError(
                f"batch_loss must not change frozen weights, as no share carries them; it changed {min(changed)!r}; "
                f"{REMEDY_FROZEN}"
            )

    def _check(self) -> None:
        now = self._model.state_dict()
        same_kind = {
            name: value
            for name, value in self._expected.items()
            if name in now and (now[name].shape, now[name].dtype) == (value.shape, value.dtype)
        }
        differ = [(now[name] != value).any() for name, value in same_kind.items()]
        flags = torch.stack(differ).tolist() if differ else []  # waits for the GPU once
        changed = self._expected.keys() - {n for n, flag in zip(same_kind, flags, strict=True) if not flag}
        for name in self._expected:
            if name not in changed:
                continue
            if is_counter(name, self._expected[name].dtype):
                raise ConfigurationError(
                    "a normalisation with momentum=None must be used once a batch, as the server counts batches; "
                    f"{name!r} did not grow by num_batches={self._num_batches}; give the layer a momentum."
                )
            raise ConfigurationError(
                "batch_loss must not change integer or boolean entries of the model, as no share carries them; it "
                f"changed {name!r}; {REMEDY}"
            )


def check_returned_static(
    returned: ArrayRecord, arrays: ArrayRecord, frozen: Collection[str] = frozenset(), *, is_change: bool
) -> None:
    """Check that a train function returned entries that no share carries as the server sent them.

    Parameters
    ----------
    returned, arrays : ArrayRecord
        The returned arrays, and the server's model. A ``num_batches_tracked`` is not checked.
    frozen : collection of str
        Floating-point and complex entries that the server treats as frozen.
    is_change : bool
        Whether the function returned changes; such an entry may then be 0, too.

    Raises
    ------
    ConfigurationError
        If an entry differs; the message names it.
    """
    for name, array in returned.items():
        values = array.numpy()
        is_static = name in frozen or (values.dtype.kind in "biu" and name.rpartition(".")[2] != COUNTER)
        if name not in arrays or not is_static:
            continue
        unchanged = np.array_equal(values, arrays[name].numpy(), equal_nan=True) or (is_change and not values.any())
        if not unchanged and name in frozen:
            raise ConfigurationError(
                "the train function must not change frozen weights, as no share carries them; it changed "
                f"{name!r}; {REMEDY_FROZEN}"
            )
        if not unchanged:
            raise ConfigurationError(
                "the train function must not change integer or boolean entries of the model, as no share carries them; "
                f"it changed {name!r}; {REMEDY}"
            )


def check_untrained(name: str, value: Tensor) -> None:
    """Raise ConfigurationError if an entry that the server treats as untrained requires a gradient."""
    if value.requires_grad:
        raise ConfigurationError(
            f"the server treats {name!r} as an entry that no gradient moves, but batch_loss made it require one; train "
            "it from the start, or start a new run with the model as it is to be trained now."
        )


def sum_of_bits(value: Tensor) -> Tensor:
    """Return a sum over a tensor's entries, read as integers and weighted by place, on the tensor's device.

    The weights are odd, so the sum detects every change of a single entry. They differ, so that it detects swaps, too.
    """
    bits = real_view(value.detach()).contiguous().view(-1)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), PIECE):
        numbers = bits[start : start + PIECE].view(WHOLE_NUMBERS[bits.element_size()])
        weights = torch.arange(2 * start + 1, 2 * (start + len(numbers)), 2, device=bits.device)
        total += weights.mul_(numbers).sum()
    return total


def _unread_counters(model: nn.Module) -> set[str]:
    """Return the names of the batch counters that torch never reads."""
    modules = model.named_modules(remove_duplicate=False)
    return {
        f"{prefix}.{COUNTER}".removeprefix(".")
        for prefix, module in modules
        if isinstance(module, _NormBase) and (module.momentum is not None or isinstance(module, _InstanceNorm))
    }
