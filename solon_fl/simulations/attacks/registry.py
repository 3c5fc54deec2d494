"""All attacks by name, as mods for a ClientApp."""

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from solon_fl.checks import check_one_of
from solon_fl.coding import CertificateWarning, Code, Decoder, FourierCode, RealDecoder
from solon_fl.config import make_decoder
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.own import OWN, is_own
from solon_fl.task import SolonTask

from .alie import Alie, TunedAlie
from .base import Attack
from .code_aware import BelowTolerance, Encoded, NearCodeword, OtherGradient, PartialCollusion, ProjectionAware, SameLie
from .fang import FangKrum, FangTrimmedMean
from .liars import Liars, partition_id, place_number
from .mods import attack_mod, crash_mod, label_flip_mod, late_mod, malformed_mod, silent_mod
from .omniscient import FallOfEmpires, InnerProduct, Mimic, MinMax, MinSum
from .own import own_attack_mod
from .simple import BitFlip, Constant, NotFinite, RandomGaussian, Reverse, SignFlip
from .tuning import Aggregate

__all__ = [
    "ATTACKS",
    "AttackFactory",
    "NamedAttack",
    "attack_named",
    "lie_if_told",
    "lone_liar_mod",
    "make_attack_mod",
]

AttackFactory = Callable[[Liars, int, Aggregate | None, Decoder | None], Mod]
"""Makes a mod from the liars, a seed, the aggregation under attack, and Solon's decoder."""


@dataclass(frozen=True)
class NamedAttack:
    """An attack and the factory of its mod.

    Attributes
    ----------
    description : str
        What the liars do, in one line.
    factory : callable
        An `AttackFactory`. `make_attack_mod` calls it.
    needs_code : bool
        Whether the attack is made against Solon's code, and so makes no sense against other strategies.
    spoils_replies : bool
        Whether the mod changes the finished reply, whatever it holds, and so must be the outermost mod.
    """

    description: str
    factory: AttackFactory
    needs_code: bool = False
    spoils_replies: bool = False


def attack_named(name: str) -> NamedAttack:
    """Return an attack of `ATTACKS`, or a user-defined one if the name is an import path.

    Raises
    ------
    ConfigurationError
        If there is no such attack.
    """
    if is_own(name):
        return NamedAttack("your own", partial(own_attack_mod, name))
    check_one_of("attack", name, ATTACKS, OWN)
    return ATTACKS[name]


def make_attack_mod(
    name: str,
    liars: Liars | Collection[int],
    seed: int,
    aggregate: Aggregate | None = None,
    decoder: Decoder | None = None,
) -> Mod:
    """Return the mod of an attack.

    Parameters
    ----------
    name : str
        A key of `ATTACKS`, or the import path ``module:name`` of your own: an `Attack`, a class or a function that
        makes one, or a Flower mod, which then runs only on the liars. A class or function is called with those of
        `seed`, `aggregate` and `decoder` that its signature names. A function of ``vectors, liars, rng`` is taken for
        `Attack.lies`.
    liars : collection of int or Liars
        Numbers of the nodes that lie; see `attack_mod`.
    seed : int
        Seed of the liars' randomness.
    aggregate : callable, (n, m) -> (d,), optional
        The server's aggregation of the nodes' vectors (for coded shares, the decode of one group), for attacks that are
        tuned against it. Default: "foe" and "alie-tuned" are tuned against the mean, and "min-max" and "min-sum" are
        not tuned.
    decoder : Decoder, optional
        Solon's decoder, if the vectors are its shares.

    Raises
    ------
    ConfigurationError
        If there is no such attack, if it is made against Solon's code and `decoder` is missing, or if your own raises.
    """
    attack = attack_named(name)
    if attack.needs_code and decoder is None:
        raise ConfigurationError(
            f"attack={name!r} is made against Solon's code; got decoder=None; use it with strategy='solon'."
        )
    return attack.factory(Liars.of(liars), seed, aggregate, decoder)


def lone_liar_mod(name: str, task: SolonTask) -> Mod:
    """Return the mod of an attack for one node that knows its own Solon task and no other liar.

    The node assumes that the decoder's s is the largest that r and k allow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)
        decoder = make_decoder(task.make_code(), (task.group_size - task.compression) // 2, 0, 1e-6)
    own_number = place_number(task.group, task.group_size, task.slot)
    return make_attack_mod(name, {own_number}, seed=task.seed, decoder=decoder)


def lie_if_told(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Attack if the config says so: a mod for testing an app in a deployment or a simulation.

    In a deployment, the node's config names the attack (``attack``). In a simulation, the run's config names it for the
    nodes whose partition ids it lists, separated by commas (``liars``).
    """
    node, run = context.node_config, context.run_config
    is_simulated = "partition-id" in node
    simulated_liar = is_simulated and str(partition_id(context)) in str(run.get("liars", "")).split(",")
    attack = str(node.get("attack") or (run.get("attack", "") if simulated_liar else ""))
    if not attack:
        return call_next(message, context)
    return lone_liar_mod(attack, SolonTask.from_message(message))(message, context, call_next)


def _mean(vectors: Tensor) -> Tensor:
    return vectors.mean(0)


def _plain(attack: Attack) -> AttackFactory:
    return lambda liars, seed, aggregate, decoder: attack_mod(attack, liars, seed)


def _tuned(make: Callable[[Aggregate | None], Attack]) -> AttackFactory:
    return lambda liars, seed, aggregate, decoder: attack_mod(make(aggregate), liars, seed)


def _against_code(make: Callable[[Code], Attack]) -> AttackFactory:
    return lambda liars, seed, aggregate, decoder: attack_mod(make(_given(decoder).code), liars, seed)


def _against_decoder(make: Callable[[RealDecoder], Attack]) -> AttackFactory:
    return lambda liars, seed, aggregate, decoder: attack_mod(make(_real(_given(decoder))), liars, seed)


def _given(decoder: Decoder | None) -> Decoder:
    if decoder is None:
        raise ConfigurationError("this attack is made against Solon's code; got decoder=None; pass the decoder.")
    return decoder


def _real(decoder: Decoder) -> RealDecoder:
    """Return the decoder, or for an exact code that of a real code of the same size, whose geometry attacks need."""
    if isinstance(decoder, RealDecoder):
        return decoder
    code = FourierCode(group_size=decoder.code.group_size, compression=decoder.code.compression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)
        return RealDecoder(code, byzantine=decoder.byzantine, stragglers=decoder.stragglers, detect_only=True)


def _without_vectors(make: Callable[[Liars], Mod]) -> AttackFactory:
    return lambda liars, seed, aggregate, decoder: make(liars)


def _projection_aware(liars: Liars, seed: int, aggregate: Aggregate | None, decoder: Decoder | None) -> Mod:
    # Not the run's seed, from which a simulated server may draw: a node cannot predict the server's draws.
    return attack_mod(ProjectionAware(seed=seed + 1), liars, seed)


ATTACKS: dict[str, NamedAttack] = {
    "reverse": NamedAttack("-100 times the node's own vector", _plain(Reverse())),
    "constant": NamedAttack("-100 in every coordinate", _plain(Constant())),
    "sign-flip": NamedAttack("the node's own vector, negated", _plain(SignFlip())),
    "random": NamedAttack("Gaussian noise with a standard deviation of 200", _plain(RandomGaussian())),
    "alie": NamedAttack("the honest mean, shifted so little that the lies look honest", _plain(Alie())),
    "alie-fraction": NamedAttack(
        "like alie, with the other published formula for the shift", _plain(Alie(convention="fraction"))
    ),
    "alie-1.5": NamedAttack(
        "the honest mean minus 1.5 standard deviations, for any number of liars", _plain(Alie(fixed_shift=1.5))
    ),
    "alie-tuned": NamedAttack(
        "the honest mean, shifted against its sign by the length that harms this defence most",
        _tuned(lambda aggregate: TunedAlie(aggregate or _mean)),
    ),
    "ipm": NamedAttack("-0.1 times the honest mean", _plain(InnerProduct())),
    "foe": NamedAttack(
        "the honest mean reversed, with the length that harms this defence most",
        _tuned(lambda aggregate: FallOfEmpires(aggregate or _mean)),
    ),
    "min-max": NamedAttack(
        "the most harmful vector no farther from the honest ones than they are from each other",
        _tuned(lambda aggregate: MinMax(aggregate=aggregate)),
    ),
    "min-sum": NamedAttack(
        "like min-max, but limits the sum of the squared distances instead of the largest one",
        _tuned(lambda aggregate: MinSum(aggregate=aggregate)),
    ),
    "fang-krum": NamedAttack("a step against the honest sign, as long as Krum still chooses", _plain(FangKrum())),
    "fang-trimmed-mean": NamedAttack(
        "just beyond the honest values of each coordinate, against the honest sign", _plain(FangTrimmedMean())
    ),
    "mimic": NamedAttack("a copy of one honest node", _plain(Mimic())),
    "label-flip": NamedAttack("honest training on flipped labels, C - 1 - y", _without_vectors(label_flip_mod)),
    "bit-flip": NamedAttack("one random bit of the vector flipped", _plain(BitFlip())),
    "nan": NamedAttack("NaN in every coordinate", _plain(NotFinite())),
    "inf": NamedAttack("infinity in every coordinate", _plain(NotFinite(float("inf")))),
    "crash": NamedAttack("the node's app raises an exception", _without_vectors(crash_mod), spoils_replies=True),
    "late": NamedAttack("the reply to the previous round", _without_vectors(late_mod), spoils_replies=True),
    "silent": NamedAttack("no reply at all", _without_vectors(silent_mod), spoils_replies=True),
    "malformed": NamedAttack(
        "replies with a wrong shape, dtype, names or bytes", _without_vectors(malformed_mod), spoils_replies=True
    ),
    "same-lie": NamedAttack("all liars add the same random vector", _plain(SameLie())),
    "constant-encoded": NamedAttack(
        "shares of a gradient that is -100 everywhere",
        _against_code(lambda code: Encoded(code, Constant())),
        needs_code=True,
    ),
    "near-codeword": NamedAttack(
        "lies that lies of other nodes explain almost as well", _against_decoder(NearCodeword), needs_code=True
    ),
    "other-gradient": NamedAttack("shares of another gradient", _against_code(OtherGradient), needs_code=True),
    "partial-collusion": NamedAttack(
        "half of the liars add noise near the tolerance, the others gross lies",
        _against_decoder(PartialCollusion),
        needs_code=True,
    ),
    "below-tolerance": NamedAttack(
        "the largest lie that passes for float noise", _against_decoder(BelowTolerance), needs_code=True
    ),
    "projection-aware": NamedAttack("a lie that a guessed projection does not see", _projection_aware, needs_code=True),
}
"""All built-in attacks by name."""
