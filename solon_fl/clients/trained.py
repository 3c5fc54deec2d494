"""A model whose frozen weights stay at home: its state_dict holds what is trained, and sums over the rest."""

from typing import Any

import torch
from torch import Tensor, nn

from solon_fl.clients.static import sum_of_bits
from solon_fl.errors import ConfigurationError

__all__ = ["SUMS", "TrainedOnly"]

SUMS = "sums_of_frozen_weights"


class TrainedOnly(nn.Module):
    """A model of which only what is trained travels, such as LoRA's adapters: its frozen weights are left out.

    Put it around the model on the server and on the nodes. Each machine loads the frozen weights itself. Beside the
    trained entries and the buffers, its state_dict has one int64 number for each frozen tensor, a sum over all of its
    bits. A machine that is given the state of another one compares these sums with its own, so that a node with other
    weights says so, in place of sending a wrong gradient in good faith.

    Parameters
    ----------
    model : Module
        In which ``requires_grad`` says what is trained.

    Attributes
    ----------
    model : Module
        The same one.

    Raises
    ------
    ConfigurationError
        In `load_state_dict`, if frozen weights differ from those of the machine that the state is from. The first of
        them is named.

    Notes
    -----
    The sums find mistakes: another revision, dtype or seed. They are no protection, and need none, as liars can send
    what they want anyway.
    Cost: one pass over the frozen weights, where they are, whenever a state is loaded, and so once a round on a node;
    and one in `state_dict` if they were made, written or moved since the last pass. For 10**8 entries on one core that
    is 0.8 s in float32 and 0.4 s in bfloat16.
    Writes to ``weight.data``, as by PEFT's merge_adapter and unmerge_adapter, are noticed when a state is loaded, for
    torch does not count them. Both leave other bits, so merge a copy.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 2))
    >>> _ = model[0].requires_grad_(False)
    >>> {name: tuple(value.shape) for name, value in TrainedOnly(model).state_dict().items()}
    {'model.1.weight': (2, 1000), 'model.1.bias': (2,), 'sums_of_frozen_weights': (2,)}
    """

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._summed: tuple[list[tuple[int, int]], Tensor] = [], torch.zeros(0, dtype=torch.int64)
        self._left_out: set[str] = set()
        hooked: Any = self  # torch's methods are untyped
        hooked.register_state_dict_post_hook(_leave_out_frozen)
        hooked.register_load_state_dict_pre_hook(_check_sums)
        hooked.register_load_state_dict_post_hook(_miss_no_frozen)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.model(*args, **kwargs)

    def frozen(self) -> dict[str, Tensor]:
        """Return the frozen weights, by their names in the model; a tied one has several."""
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: value for name, value in named if not value.requires_grad}

    def sums(self) -> Tensor:
        """Return a sum over the bits of each frozen weight, (number of them,), int64, CPU."""
        sums = [sum_of_bits(value) for value in self.frozen().values()]
        self._summed = self._versions(), torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)
        return self._summed[1]

    def _versions(self) -> list[tuple[int, int]]:
        """Return where the frozen weights are, and how often torch saw each written to."""
        return [(value.data_ptr(), value._version) for value in self.frozen().values()]


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    assert isinstance(module, TrainedOnly)
    for name in module.frozen():
        state.pop(f"{prefix}model.{name}", None)
    versions, latest = module._summed
    state[prefix + SUMS] = latest if versions == module._versions() else module.sums()


def _check_sums(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    assert isinstance(module, TrainedOnly)
    others = state.pop(prefix + SUMS, None)
    names, own = list(module.frozen()), module.sums()
    module._left_out = {f"{prefix}model.{name}" for name in names}
    if others is None or others.shape != own.shape:
        got = "none" if others is None else f"{others.numel()} of them"
        raise ConfigurationError(
            f"a state must be from a model with the same frozen weights, of which this one has {len(names)}; got "
            f"{SUMS} of {got}; put TrainedOnly around the model on the server and on the nodes, and freeze the same."
        )
    differ = (own != others.cpu()).nonzero().flatten().tolist()
    if differ:
        raise ConfigurationError(
            f"frozen weights must be the same everywhere, bit by bit; {len(differ)} of {len(names)} are not the "
            f"server's, the first is {names[differ[0]]!r}; load the same revision in the same dtype, make random ones "
            "from the same seed, and write to none (merge adapters in a copy)."
        )


def _miss_no_frozen(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, TrainedOnly)
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in module._left_out]
