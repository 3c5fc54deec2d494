"""Trials of the exact code for benchmarks/decoding_accuracy.py: the liars, their lies, and the missing shares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from solon_fl import ExactCode, ExactDecoder
from solon_fl.coding import smallest_group
from solon_fl.coding.exact.code import block_size
from solon_fl.coding.exact.field import LARGEST, P, canonical, combined, float_bits, halves
from solon_fl.simulations import attacks as a

LARGE_EVERY = 97  # in every 97th trial the shares may have several blocks
CPU = torch.device("cpu")

Lie = Callable[["Scene"], Tensor]  # bits of the liars' shares, (l, m) int32


@dataclass(frozen=True)
class Scene:
    """The bits of a group's gradient and shares, and the liars. All other slots in `present` are honest."""

    decoder: ExactDecoder
    gradient: Tensor  # (d,) int32
    honest: Tensor  # (r, m) int32
    liars: list[int]
    present: list[int]
    rng: torch.Generator

    @property
    def code(self) -> ExactCode:
        """The group's code."""
        return self.decoder.code

    def whole(self, *size: int) -> Tensor:
        """Draw random bits."""
        return torch.randint(-(2**31), 2**31, size, generator=self.rng).to(torch.int32)

    def below(self, bound: int) -> int:
        """Draw a number from 0 to bound - 1."""
        return int(torch.randint(bound, (), generator=self.rng))


@lru_cache(maxsize=4)
def make_exact_decoder(byzantine: int, compression: int) -> ExactDecoder:
    """Return the decoder of the smallest group."""
    size = smallest_group(byzantine=byzantine, compression=compression)
    return ExactDecoder(ExactCode(group_size=size, compression=compression), byzantine=byzantine)


def draw_scene(byzantine: int, compression: int, trial: int, seed: int) -> tuple[str, Scene, dict[int, Tensor]]:
    """Draw a trial: the name of the lie, the honest state of the group, and the shares that arrive.

    In half of the trials there are s liars, and all shares arrive. In the others, the numbers of liars and of missing
    shares are random, with 2 liars + missing <= 2 s.
    """
    rng = torch.Generator().manual_seed(seed * 1_000_000_007 + trial)
    decoder = make_exact_decoder(byzantine, compression)
    code, name = decoder.code, list(LIES)[trial % len(LIES)]
    most = 2 * block_size(code.group_size, CPU) if trial % LARGE_EVERY == 0 else 64
    gradient = _draw_gradient(int(torch.randint(1, most * compression, (), generator=rng)), rng)
    if name == "not-canonical":
        gradient[:: code.share_dim(len(gradient))] = -0.0  # which makes the first entry of each share -0.0
    num_missing = 0
    if bool(torch.rand((), generator=rng) < 0.5):
        num_liars = byzantine
    else:
        num_liars = int(torch.randint(byzantine + 1, (), generator=rng))
        num_missing = int(torch.randint(2 * (byzantine - num_liars) + 1, (), generator=rng))
    order = torch.randperm(code.group_size, generator=rng).tolist()
    liars, present = sorted(order[:num_liars]), sorted(order[: code.group_size - num_missing])
    bits = float_bits(gradient)
    scene = Scene(decoder, bits, _encode_all(code, bits), liars, present, rng)
    received = scene.honest.clone()
    if liars:
        received[liars] = LIES[name](scene)
    return name, scene, {slot: received[slot].view(torch.float32) for slot in present}


def _draw_gradient(dim: int, rng: torch.Generator) -> Tensor:
    """Draw numbers as uneven as real gradients or, with probability 1/2, any bits, including infinity and NaN."""
    if bool(torch.rand((), generator=rng) < 0.5):
        return torch.randint(-(2**31), 2**31, (dim,), generator=rng).to(torch.int32).view(torch.float32)
    return torch.randn(dim, generator=rng) * torch.rand(dim, generator=rng) ** 4


@lru_cache(maxsize=4)
def _matrix(code: ExactCode) -> Tensor:
    return halves(code.interpolation(list(range(code.compression)), list(range(code.group_size))), CPU)


def _encode_all(code: ExactCode, bits: Tensor) -> Tensor:
    """Return all shares, (r, m), by one product, which is faster than calling `encode` for each."""
    chunks = torch.zeros(code.compression, code.share_dim(len(bits)), dtype=torch.float64)
    chunks.view(-1)[: len(bits)] = bits
    return canonical(combined(_matrix(code), chunks))


def _one_bit(scene: Scene) -> Tensor:
    """Return the honest shares with one bit of each flipped, anywhere."""
    return _flipped(scene, [scene.below(scene.honest.shape[1]) for _ in scene.liars])


def _one_bit_same_column(scene: Scene) -> Tensor:
    return _flipped(scene, [scene.below(scene.honest.shape[1])] * len(scene.liars))


def _one_bit_other_columns(scene: Scene) -> Tensor:
    """Return lies in distinct columns, if there are enough columns."""
    order = torch.randperm(scene.honest.shape[1], generator=scene.rng).tolist()
    return _flipped(scene, [order[number % len(order)] for number in range(len(scene.liars))])


def _flipped(scene: Scene, columns: list[int]) -> Tensor:
    lies = scene.honest[scene.liars]
    for lie, column in zip(lies, columns, strict=True):
        bit = scene.below(32)
        lie[column] ^= 2**bit if bit < 31 else -(2**31)
    return lies


def _not_canonical(scene: Scene) -> Tensor:
    """Return other bits for the same field elements, where they exist, and in half of the shares invalid bits."""
    same = scene.honest[scene.liars].long()
    same += P * (same < LARGEST - P + 6)
    for number in range(0, len(same), 2):
        same[number, scene.below(same.shape[1])] = LARGEST + 1 + scene.below(5)
    return same.to(torch.int32)


def _other_gradient_one_bit(scene: Scene) -> Tensor:
    """Return shares of a gradient that differs from the true one in one bit."""
    other = scene.gradient.clone()
    other[scene.below(len(other))] ^= 1
    return _encode_all(scene.code, other)[scene.liars]


def _as_another(scene: Scene) -> Tensor:
    return scene.honest[[(liar + 1) % len(scene.honest) for liar in scene.liars]]


def _same(scene: Scene) -> Tensor:
    return scene.whole(1, scene.honest.shape[1]).expand(len(scene.liars), -1)


def _random(scene: Scene) -> Tensor:
    return scene.whole(len(scene.liars), scene.honest.shape[1])


def _some_random(scene: Scene) -> Tensor:
    """Return random bits in about a tenth of the entries."""
    lies = scene.honest[scene.liars]
    return torch.where(torch.rand(lies.shape, generator=scene.rng) < 0.1, _random(scene), lies)


def _zeros(scene: Scene) -> Tensor:
    return torch.zeros_like(scene.honest[scene.liars])


def _attack(make: Callable[[ExactCode], a.Attack]) -> Lie:
    def lies(scene: Scene) -> Tensor:
        vectors = scene.honest.view(torch.float32)
        return make(scene.code).lies(vectors, scene.liars, scene.rng).contiguous().view(torch.int32)

    return lies


ALONE: dict[str, Lie] = {
    "one-bit": _one_bit,
    "one-bit-same-column": _one_bit_same_column,
    "one-bit-other-columns": _one_bit_other_columns,
    "not-canonical": _not_canonical,
    "random": _random,
    "some-random": _some_random,
    "zeros": _zeros,
    "same": _same,
    "as-another": _as_another,
    "reverse": _attack(lambda code: a.Reverse()),
    "constant": _attack(lambda code: a.Constant()),
    "bit-flip": _attack(lambda code: a.BitFlip()),
    "nan": _attack(lambda code: a.NotFinite()),
    "reverse-encoded": _attack(lambda code: a.Encoded(code, a.Reverse())),
    "constant-encoded": _attack(lambda code: a.Encoded(code, a.Constant())),
    "other-gradient": _attack(a.OtherGradient),
    "other-gradient-one-bit": _other_gradient_one_bit,
}


def _mixed(scene: Scene) -> Tensor:
    """Return lies of a random kind for each liar."""
    kinds = [list(ALONE.values())[scene.below(len(ALONE))] for _ in scene.liars]
    return torch.stack([kind(scene)[row] for row, kind in enumerate(kinds)])


LIES: dict[str, Lie] = {**ALONE, "mixed": _mixed}
