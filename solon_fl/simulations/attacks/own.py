"""User-defined attacks: make Flower mods from import paths such as "my_package.attacks:Mine"."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from solon_fl.coding import Decoder
from solon_fl.simulations.attacks.base import Attack
from solon_fl.simulations.attacks.liars import Addressee, Liars
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.simulations.attacks.tuning import Aggregate
from solon_fl.simulations.own import OwnCodeError, arguments_for, call_own, load_own, seeded, theirs

__all__ = ["own_attack_mod", "try_own_attack"]

_TRIED_LENGTH = 1000  # entries of a vector
_LIES = ["vectors", "liars", "rng"]  # parameters of Attack.lies


def own_attack_mod(
    name: str, liars: Liars, seed: int, aggregate: Aggregate | None = None, decoder: Decoder | None = None
) -> Mod:
    """Return the mod of a user-defined attack: the user's own mod, run on liars only, or one that applies an `Attack`.

    Raises
    ------
    OwnCodeError
        If nothing has that name, making the attack raises, or it is neither an `Attack` nor a mod.
    """
    made = _made(name, seed, aggregate, decoder)
    if _is_attack(made):
        return attack_mod(_Blamed(name, cast(Attack, made)), liars, seed)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if liars.include(Addressee.of(message, context)):
            return cast(Mod, made)(message, context, call_next)
        return call_next(message, context)

    return mod


def try_own_attack(name: str, num_vectors: int, decoder: Decoder | None) -> None:
    """Try a user-defined attack on random vectors before the run. Its errors in the run would pass for node crashes.

    Parameters
    ----------
    name : str
        The attack's import path.
    num_vectors : int
        Number of vectors that the server combines.
    decoder : Decoder or None
        Solon's decoder.

    Raises
    ------
    OwnCodeError
        If the attack raises, or its lies are not as `Attack.lies` requires.
    """
    attack = _made(name, 0, lambda vectors: vectors.mean(0), decoder)
    if not _is_attack(attack):
        return
    rng = torch.Generator().manual_seed(0)
    with seeded(0), theirs("attack", name):
        liars: Sequence[int] = range(min(2, num_vectors)) if attack.omniscient else [0]
        vectors = torch.randn(num_vectors if attack.omniscient else 1, _TRIED_LENGTH, generator=rng)
        lies = attack.lies(vectors, liars, rng)
    wanted = (len(liars), _TRIED_LENGTH)
    if not isinstance(lies, Tensor) or tuple(lies.shape) != wanted or lies.dtype != vectors.dtype:
        got = f"{tuple(lies.shape)} {lies.dtype}" if isinstance(lies, Tensor) else f"{type(lies).__name__}"
        raise OwnCodeError(
            f"attack={name!r} must return a tensor with one row per liar and the length and dtype of the vectors, "
            f"{wanted} {vectors.dtype} here; got {got}; see solon_fl.simulations.attacks.Attack."
        )


def _made(name: str, seed: int, aggregate: Aggregate | None, decoder: Decoder | None) -> Any:
    """Return the user's `Attack` or mod. A class, or a function that is neither, is called to make it."""
    found = load_own("attack", name)
    if isinstance(found, type) or (callable(found) and not _is_attack(found) and _needed(found) < 3):
        found = call_own("attack", name, found, {"seed": seed, "aggregate": aggregate, "decoder": decoder})
    if _is_attack(found):
        return found
    if callable(found) and _needed(found) == 3:
        return _Function(found) if list(inspect.signature(found).parameters) == _LIES else found
    got = f"{type(found).__name__}{' without omniscient' if hasattr(found, 'lies') else ''}"
    raise OwnCodeError(
        f"attack={name!r} must be an Attack, with omniscient and lies(vectors, liars, rng), or a function of vectors, "
        f"liars, rng, or a Flower mod, or a class or function that makes one of these; got {got}; see "
        "docs/how-to/own-model-and-data.md."
    )


class _Function:
    """Makes a user's function an `Attack`."""

    omniscient = True

    def __init__(self, lies: Callable[[Tensor, Sequence[int], torch.Generator], Tensor]) -> None:
        self.lies = lies


class _Blamed:
    """Wraps a user's `Attack` so that its exceptions are reported as errors in their code, not as a node's crash."""

    def __init__(self, name: str, attack: Attack) -> None:
        self._name = name
        self._attack = attack
        self.omniscient = attack.omniscient

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        with theirs("attack", self._name):
            return self._attack.lies(vectors, liars, rng)


def _is_attack(thing: Any) -> bool:
    return hasattr(thing, "omniscient") and callable(getattr(thing, "lies", None))


def _needed(thing: Callable[..., Any]) -> int:
    """Return the number of arguments that a callable requires."""
    return len(arguments_for(thing, {})[1])
