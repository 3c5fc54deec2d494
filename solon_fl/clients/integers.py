"""Integer and boolean entries of a model. No share carries them, so a node checks that the server knows what they are.

The server leaves them as they are, but for `num_batches_tracked`, to which it adds the number of the round's batches.
"""

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from solon_fl.errors import ConfigurationError
from solon_fl.wire import COUNTER, is_continuous, is_counter

__all__ = ["FollowedIntegers", "check_returned_integers"]

REMEDY = (  # short, as the server's log shows 300 characters
    "keep it in a float buffer, compute it from batch.round, set it on the server's model before the run, or register "
    "it with persistent=False."
)


class FollowedIntegers:
    """Within the `with` block a node computes; on leaving, integer entries must be what the server takes them to be.

    The num_batches_tracked of a BatchNorm that has a momentum, and of an InstanceNorm, is not looked at: torch doesn't
    read it.

    Parameters
    ----------
    model : Module
        With the server's state.
    num_batches : int
        That will be computed.

    Raises
    ------
    ConfigurationError
        On leaving, if one is not; it is named.
    """

    def __init__(self, model: nn.Module, num_batches: int) -> None:
        self._model = model
        self._num_batches = num_batches
        self._expected: dict[str, Tensor] = {}

    def __enter__(self) -> "FollowedIntegers":
        unread = _unread_counters(self._model)
        for name, value in self._model.state_dict().items():
            if isinstance(value, Tensor) and not is_continuous(value) and name not in unread:
                self._expected[name] = value + self._num_batches if is_counter(name, value.dtype) else value.clone()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._expected:
            self._check()

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
                    "a normalisation with momentum=None must be used once a batch, for the server counts batches; "
                    f"{name!r} did not grow by num_batches={self._num_batches}; give the layer a momentum."
                )
            raise ConfigurationError(
                "batch_loss must not change integer or boolean entries of the model, as no share carries that; it "
                f"changed {name!r}; {REMEDY}"
            )


def check_returned_integers(returned: ArrayRecord, arrays: ArrayRecord, *, is_change: bool) -> None:
    """Check that integer entries among what a train function returns are as the server sent them.

    Parameters
    ----------
    returned, arrays : ArrayRecord
        What it returned, and the server's model. A num_batches_tracked is not looked at.
    is_change : bool
        Whether changes were returned: then an entry may be 0, too.

    Raises
    ------
    ConfigurationError
        If one is not; it is named.
    """
    for name, array in returned.items():
        values = array.numpy()
        if name not in arrays or values.dtype.kind not in "biu" or name.rpartition(".")[2] == COUNTER:
            continue
        unchanged = np.array_equal(values, arrays[name].numpy()) or (is_change and not values.any())
        if not unchanged:
            raise ConfigurationError(
                "the train function must not change integer or boolean entries of the model, as no share carries that; "
                f"it changed {name!r}; {REMEDY}"
            )


def _unread_counters(model: nn.Module) -> set[str]:
    """Return the names of those counters of batches that torch itself never reads."""
    modules = model.named_modules(remove_duplicate=False)
    return {
        f"{prefix}.{COUNTER}".removeprefix(".")
        for prefix, module in modules
        if isinstance(module, _NormBase) and (module.momentum is not None or isinstance(module, _InstanceNorm))
    }
