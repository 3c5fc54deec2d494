"""Epochs are computed, not stored: permutations as random as shuffles, which are the same on all nodes of a run."""

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from solon_fl import SolonConfig
from solon_fl.clients import Batch, SolonTask
from solon_fl.epochs import DOUBLE_ROUNDS, examples_at, permuted
from solon_fl.errors import ConfigurationError

LEAST = 1e-4  # p-value; the seeds are fixed, so the result is always the same


def drawn(size: int, places: range | list[int], number: int) -> list[int]:
    """Return the entries at these positions of the permutation with keys of this number."""
    keys = np.random.default_rng(number).integers(0, 2**64, 2 * DOUBLE_ROUNDS, dtype=np.uint64)
    return [int(value) for value in permuted(np.array(places, np.uint64), size, keys)]


def batches_of(config: SolonConfig, rounds: int) -> list[Batch]:
    """Return all batches of a run, in the order of their numbers."""
    return [
        batch
        for server_round in range(1, rounds + 1)
        for group in range(config.num_groups)
        for batch in SolonTask.of_run(config, server_round, group=group, slot=0, dim=1, buffers=()).batches
    ]


@given(size=st.integers(1, 3000), number=st.integers(0, 2**32))
def test_every_number_stands_in_one_place(size: int, number: int) -> None:
    assert sorted(drawn(size, range(size), number)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 66, 67, 255, 256, 257, 9999, 10_000, 10_001, 123_457])
def test_sizes_about_those_of_squares_are_permuted_too(size: int) -> None:
    assert sorted(drawn(size, range(size), 1)) == list(range(size))


@pytest.mark.parametrize("size", [2**31 + 11, 2**53 + 111, 2**62])
def test_huge_sizes_are_permuted_where_one_looks(size: int) -> None:
    found = drawn(size, [*range(500), *range(size - 500, size)], 3)
    assert len(set(found)) == 1000
    assert 0 <= min(found) < size / 100
    assert size * 0.99 < max(found) < size


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_few_numbers_are_as_likely(size: int) -> None:
    counts = Counter(tuple(drawn(size, range(size), number)) for number in range(6000))
    assert chisquare([counts[order] for order in permutations(range(size))]).pvalue > LEAST


@pytest.mark.parametrize("size", [6, 25, 65, 81, 100])
def test_every_pair_of_numbers_is_as_likely_in_two_places(size: int) -> None:
    """For small sizes all orders are counted. For larger ones, the entries at two positions and their distances are."""
    pairs = [drawn(size, [0, size // 2], number) for number in range(2000)]
    for counted, possible in (([first for first, _ in pairs], range(size)), ([b - a for a, b in pairs], None)):
        counts = Counter(value % size for value in counted)
        assert chisquare([counts[value] for value in possible or range(1, size)]).pvalue > LEAST
    assert all(first != second for first, second in pairs)


@pytest.mark.parametrize("size", [1000, 60_000])
def test_an_order_has_no_structure(size: int) -> None:
    """Neither steps between positions nor successive epochs show a pattern."""
    order, later = examples_at(0, size, size, 0), examples_at(size, size, size, 0)
    for difference in (np.diff(order), later - order, later - order[::-1]):
        counts = np.bincount(difference % size * 20 // size, minlength=20)
        assert chisquare(counts).pvalue > LEAST
    # A random order has about one fixed point, and one ascending neighbour.
    assert (order == np.arange(size)).sum() < 8
    assert (np.diff(order) == 1).sum() < 8
    ascending = sum(first < second for first, second in pairwise(order.tolist())) / size
    assert ascending == pytest.approx(0.5, abs=4 / np.sqrt(12 * size))


@settings(max_examples=25)
@given(
    num_examples=st.integers(1, 300),
    data=st.data(),
    batches_per_group=st.integers(1, 5),
    groups=st.integers(1, 3),
)
def test_the_batches_of_a_run_hold_each_example_once_an_epoch(
    num_examples: int, data: st.DataObject, batches_per_group: int, groups: int
) -> None:
    batch_size = data.draw(st.integers(1, num_examples))
    config = SolonConfig(num_nodes=4 * groups, byzantine=1, compression=2, batches_per_group=batches_per_group)
    per_round = batches_per_group * groups * batch_size
    batches = batches_of(config, rounds=2 * num_examples // per_round + 1)
    seen = torch.cat([batch.sample_epoch(num_examples, batch_size) for batch in batches]).tolist()
    assert sorted(seen[:num_examples]) == sorted(seen[num_examples : 2 * num_examples]) == list(range(num_examples))
    assert all(len(batch.sample_epoch(num_examples, batch_size)) == batch_size for batch in batches)


def test_epochs_have_orders_of_their_own_and_so_have_runs() -> None:
    orders = [tuple(Batch(seed, 1, 0, place).sample_epoch(50, 50).tolist()) for seed in (0, 1) for place in range(3)]
    assert len(set(orders)) == 6


def test_silos_go_through_their_own_data_each() -> None:
    config = SolonConfig(num_nodes=8, byzantine=1, compression=2, batches_per_group=2, grouping="silo")
    for group in (0, 1):
        tasks = [SolonTask.of_run(config, number, group=group, slot=0, dim=1, buffers=()) for number in range(1, 6)]
        seen = torch.cat([batch.sample_epoch(20, 2) for task in tasks for batch in task.batches])
        assert sorted(seen.tolist()) == list(range(20))


def test_a_run_that_goes_on_goes_on_in_its_epoch() -> None:
    """The order depends on the round's number, so a restart can't lose it."""
    config = SolonConfig(num_nodes=8, byzantine=1, compression=2)
    last = batches_of(config, rounds=3)[-1]
    assert last.place == 3 * 8 - 1
    again = SolonTask.of_run(config, 3, group=1, slot=2, dim=1, buffers=()).batches[-1]
    assert torch.equal(again.sample_epoch(1000, 10), last.sample_epoch(1000, 10))


def test_what_an_epoch_of_a_run_is_stays_what_it_was() -> None:
    assert Batch(1, 2, 3, place=11).sample_epoch(50_000, 4).tolist() == [46587, 44324, 33644, 13078]


def test_a_batch_of_a_huge_data_set_costs_no_more_than_the_batch() -> None:
    chosen = Batch(1, 2, 3, place=10**9).sample_epoch(2**40, 1000)  # a stored order would not fit into memory
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == 1000


@pytest.mark.parametrize("batch_size", [0, 51])
def test_an_impossible_batch_size_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"batch_size={batch_size}"):
        Batch(0, 1, 0, 0).sample_epoch(50, batch_size)


def test_a_batch_that_does_not_know_its_place_has_no_epoch() -> None:
    with pytest.raises(ConfigurationError, match="place=None; take the batches of a SolonTask"):
        Batch(0, 1, 0).sample_epoch(50, 5)


def test_torchs_defaults_do_not_disturb_epochs() -> None:
    expected = Batch(0, 1, 0, 0).sample_epoch(50, 5)
    torch.set_default_device("meta")
    try:
        found = Batch(0, 1, 0, 0).sample_epoch(50, 5)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
