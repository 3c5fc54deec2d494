"""Omniscient liars get no honest slot named: trials of benchmarks/framing.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.framing import RTOL, SIZES, Cell, Tally, make_decoder, run_trial
from benchmarks.framing_lies import FAMILIES, Scene, worst_noise

FAST = [size for size in SIZES if size not in [(5, 10), (8, 4), (10, 3)]]
LARGE = sorted(set(SIZES) - set(FAST))


def tally_of(s: int, k: int, e: int, dtype: torch.dtype, trials: int, seed: int) -> Tally:
    tally = Tally()
    for trial in range(trials):
        run_trial(Cell(s, k, e, dtype, trials), trial, seed, tally)
    return tally


def check(tally: Tally) -> None:
    assert tally.named.total() == 0
    assert tally.outside.total() == 0
    assert tally.failed.total() == 0


@pytest.mark.slow
@settings(max_examples=60)
@given(
    size=st.sampled_from(FAST),
    e=st.integers(0, 2),
    dtype=st.sampled_from(list(RTOL)),
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(0, 100),
)
def test_no_lies_get_an_honest_slot_named(
    size: tuple[int, int], e: int, dtype: torch.dtype, seed: int, first: int
) -> None:
    tally = Tally()
    for trial in range(first, first + len(FAMILIES)):  # one trial per family
        run_trial(Cell(*size, e, dtype, 0), trial, seed, tally)
    check(tally)


@pytest.mark.slow
@pytest.mark.parametrize(("s", "k"), LARGE)
@pytest.mark.parametrize("dtype", RTOL)
def test_nor_do_they_in_large_groups(s: int, k: int, dtype: torch.dtype) -> None:
    check(tally_of(s, k, 0, dtype, trials=3 * len(FAMILIES), seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", RTOL)
def test_the_lies_are_ones_that_work(dtype: torch.dtype) -> None:
    tally = tally_of(2, 6, 0, dtype, trials=30 * len(FAMILIES), seed=0)
    assert {"interpolated", "several codewords", "cheapest"} <= set(+tally.framed), "no honest rows are left out"


def test_noise_is_just_within_what_honest_shares_may_be_off_by() -> None:
    decoder = make_decoder(Cell(2, 6, 0, torch.float32, 0))
    rng = np.random.default_rng(0)
    shares = decoder.code.generator @ rng.normal(size=(6, 50))
    for _ in range(10):
        scene = Scene(decoder=decoder, slots=tuple(range(10)), shares=shares, liars=(3, 7))
        sizes = np.linalg.norm(worst_noise(scene, rng), axis=1) / (decoder.rtol * scene.scale)
        assert set(np.round(sizes, 6)) == {0.0, 0.9}
        assert sizes[[3, 7]].tolist() == [0, 0]
