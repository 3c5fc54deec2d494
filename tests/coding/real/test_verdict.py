"""Only certain liars are named, however omniscient liars try to frame honest nodes."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import FourierCode, RealDecoder
from solon_fl.simulations.attacks import NearCodeword

SIZES = [(1, 3), (2, 6), (3, 8), (4, 8), (5, 5), (5, 10)]  # s, k; all certificates are below 1
Shares = dict[int, Tensor]


def decoder_of(s: int, k: int, extra: int = 0) -> RealDecoder:
    return RealDecoder(FourierCode(group_size=2 * s + k + extra, compression=k), byzantine=s)


def honest_shares(decoder: RealDecoder, rng: np.random.Generator, dim: int = 300) -> tuple[Tensor, Shares]:
    gradient = torch.from_numpy(rng.normal(size=dim).astype(np.float32))
    return gradient, {slot: decoder.code.encode(gradient, slot) for slot in range(decoder.code.group_size)}


def interpolated(decoder: RealDecoder, shares: Shares, liars: list[int], rng: np.random.Generator) -> Shares:
    """Send the shares of the gradient that k badly conditioned honest rows interpolate, including their rounding."""
    generator, k = decoder.code.generator, decoder.code.compression
    honest = [slot for slot in shares if slot not in liars]
    sets = list(combinations(honest, k))
    tried = [sets[i] for i in rng.choice(len(sets), min(len(sets), 300), replace=False)]
    worst = max(tried, key=lambda chosen: float(np.linalg.cond(generator[list(chosen)])))
    chunks = torch.linalg.solve(
        torch.from_numpy(generator[list(worst)]), torch.stack([shares[slot] for slot in worst]).double()
    )
    return shares | {liar: (torch.from_numpy(generator[liar]) @ chunks).float() for liar in liars}


def nearly_a_codeword(decoder: RealDecoder, shares: Shares, liars: list[int], rng: np.random.Generator) -> Shares:
    """Send lies that look like those of other nodes, of a size at which these can't be distinguished for certain."""
    rows = torch.stack(list(shares.values()))
    lies = NearCodeword(decoder, size=float(10 ** rng.uniform(-6, -2))).lies(
        rows, liars, torch.Generator().manual_seed(int(rng.integers(2**31)))
    )
    return shares | dict(zip(liars, lies, strict=True))


def small(decoder: RealDecoder, shares: Shares, liars: list[int], rng: np.random.Generator) -> Shares:
    lies = {}
    for liar in liars:
        direction = torch.from_numpy(rng.normal(size=shares[liar].numel())).float()
        size = float(10 ** rng.uniform(-7, 1)) * float(shares[liar].norm())
        lies[liar] = shares[liar] + size * direction / direction.norm()
    return shares | lies


ATTACKS = [interpolated, nearly_a_codeword, small]


@settings(max_examples=50)
@given(
    size=st.sampled_from(SIZES),
    attack=st.sampled_from(ATTACKS),
    seed=st.integers(0, 2**32 - 1),
    missing=st.integers(0, 3),
    extra=st.integers(0, 2),
)
def test_no_honest_row_is_ever_named(
    size: tuple[int, int], attack: object, seed: int, missing: int, extra: int
) -> None:
    s, k = size
    rng = np.random.default_rng(seed)
    decoder = decoder_of(s, k, extra if s < 5 else 0)  # larger ones have a certificate of 1 or more
    gradient, shares = honest_shares(decoder, rng)
    liars = sorted(rng.choice(len(shares), int(rng.integers(1, s + 1)), replace=False).tolist())
    if attack is nearly_a_codeword and rng.random() < 0.7:
        liars = NearCodeword(decoder).best_liars()
    sent = attack(decoder, shares, liars, rng)  # type: ignore[operator]  # one of the three above
    for slot in rng.permutation(len(shares))[: min(missing, len(shares) - k - s)].tolist():
        sent.pop(slot, None)
    decoded = decoder.decode(sent, dim=len(gradient))
    if decoded.gradient is None or decoded.num_agreeing < k + s:
        return
    assert set(decoded.corrupt_slots) <= set(liars)
    assert not set(decoded.corrupt_slots) & set(decoded.suspect_slots)
    assert float((decoded.gradient - gradient).double().norm()) <= decoded.error_bound


def test_liars_who_interpolate_badly_conditioned_rows_make_suspects_and_no_verdict() -> None:
    decoder = decoder_of(5, 10)
    framed = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, shares = honest_shares(decoder, rng, dim=2000)
        liars = sorted(rng.choice(20, 5, replace=False).tolist())
        decoded = decoder.decode(interpolated(decoder, shares, liars, rng), dim=2000)
        assert decoded.ok
        assert set(decoded.corrupt_slots) <= set(liars)
        framed += bool(set(decoded.suspect_slots) - set(liars))
    assert framed >= 5, "the attack must succeed in getting honest rows left out"


@pytest.mark.parametrize(("s", "k"), SIZES)
@pytest.mark.parametrize("size", [1.0, 0.1, 0.01, 1e-3])
def test_independent_lies_are_all_named_down_to_a_thousandth_of_a_share(s: int, k: int, size: float) -> None:
    decoder = decoder_of(s, k)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        _, shares = honest_shares(decoder, rng, dim=2000)
        liars = sorted(rng.choice(len(shares), s, replace=False).tolist())
        for liar in liars:
            direction = torch.from_numpy(rng.normal(size=shares[liar].numel())).float()
            shares[liar] = shares[liar] + size * float(shares[liar].norm()) * direction / direction.norm()
        decoded = decoder.decode(shares, dim=2000)
        assert decoded.corrupt_slots == tuple(liars)
        assert decoded.suspect_slots == ()


def explained_without(decoder: RealDecoder, shares: Shares, slot: int, noise: float) -> bool:
    """Return whether some set of s rows, without this one, explains the shares: the others agree up to the noise."""
    s = decoder.byzantine
    rows = torch.stack(list(shares.values())).double().numpy()
    for support in combinations([row for row in range(len(rows)) if row != slot], s):
        kept = np.delete(np.arange(len(rows)), support)
        generator = decoder.code.generator[kept]
        solution, *_ = np.linalg.lstsq(generator, rows[kept], rcond=None)
        if np.linalg.norm(rows[kept] - generator @ solution) <= noise:
            return True
    return False


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(-6.5, -3.5), together=st.booleans())
def test_a_row_is_named_only_if_no_other_lies_explain_the_shares(seed: int, size: float, together: bool) -> None:
    decoder = decoder_of(2, 3)
    rng = np.random.default_rng(seed)
    _, shares = honest_shares(decoder, rng, dim=60)
    liars = sorted(rng.choice(7, 2, replace=False).tolist())
    common = torch.from_numpy(rng.normal(size=20)).float()
    for liar in liars:
        direction = common if together else torch.from_numpy(rng.normal(size=20)).float()
        shares[liar] = shares[liar] + 10**size * float(shares[liar].norm()) * direction / direction.norm()
    decoded = decoder.decode(shares, dim=60)
    noise = decoded.tolerance / (9.4 * 3)
    for slot in decoded.corrupt_slots:
        assert not explained_without(decoder, shares, slot, noise)
    for slot in decoded.suspect_slots:  # the rule is tight, apart from the residual of the kept rows
        assert explained_without(decoder, shares, slot, 2.1 * noise + decoded.residual)
