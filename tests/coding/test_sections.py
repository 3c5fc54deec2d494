"""Tensors and their classes: their columns, and how lies in each are detected, located and named."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import Code, ConfigurationError, Decoded, DecodeStatus, RealDecoder
from solon_fl.coding.real.projection import Memory
from solon_fl.coding.sections import Sections, padded, spread
from tests.coding.real.problems import decode, fourier_decoder, seeded, shares_of

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@given(sizes=sizes, compression=st.integers(1, 7), width=st.integers(1, 50))
def test_pieces_and_blocks_are_all_columns_in_order(sizes: list[int], compression: int, width: int) -> None:
    sections = Sections.of([(size, "parameters") for size in sizes], compression=compression)
    filled = filter(None, sizes)  # tensors without entries are left out
    owners = [number for number, size in enumerate(filled) for _ in range(math.ceil(size / compression))]
    pieces, blocks = [], []
    for start in range(0, sections.num_columns, width):
        stop = min(start + width, sections.num_columns)
        for number, cut in sections.pieces(start, stop):
            pieces += [(number, start + column) for column in range(cut.start, cut.stop)]
    for number, cut in sections.blocks(width):
        assert cut.stop - cut.start <= width
        blocks += [(number, column) for column in range(cut.start, cut.stop)]
    assert pieces == blocks == list(zip(owners, range(sections.num_columns), strict=True))


@given(sizes=sizes, compression=st.integers(1, 7))
def test_a_vector_is_spread_as_its_tensors_are_padded(sizes: list[int], compression: int) -> None:
    vector = torch.arange(1, sum(sizes) + 1)
    coded = spread(vector, sizes, compression)
    expected = [
        torch.nn.functional.pad(part, (0, padded(size, compression) - size))
        for part, size in zip(vector.split(sizes), sizes, strict=True)  # type: ignore[no-untyped-call]
    ]
    assert torch.equal(coded, torch.cat(expected))
    assert spread(coded, sizes, compression) is coded


def test_sections_that_do_not_fit_the_shares_are_refused() -> None:
    decoder = fourier_decoder(byzantine=1, compression=2)
    with pytest.raises(ConfigurationError, match="sections must cover the shares' 5 columns; got 4"):
        decoder.decode(shares_of(decoder.code, torch.ones(10)), sections=Sections.whole(4))


# A model of a gradient of norm 1, small tensors in it, and statistics of 1e8

TENSORS = [(600, "parameters"), (60, "parameters"), (6, "parameters"), (60, "buffers"), (600, "parameters")]
SIZES = (1.0, 1e-9, 1.0, 1e8, 1.0)
DECODER = fourier_decoder(byzantine=2, compression=6)
LIARS = (1, 4)


def sections_for(code: Code) -> Sections:
    return Sections.of(TENSORS, compression=code.compression)


def columns_of(sections: Sections, number: int) -> slice:
    return slice([0, *sections.stops][number], sections.stops[number])


def gradient_of(code: Code, seed: int = 0) -> Tensor:
    sections = sections_for(code)
    columns = torch.randn(sections.num_columns, code.compression, generator=seeded(seed))
    for number, size in enumerate(SIZES):
        columns[columns_of(sections, number)] *= size
    return columns.reshape(-1)


def lie_in(
    number: int, size: float, liars: tuple[int, ...] = LIARS, decoder: RealDecoder = DECODER
) -> dict[int, Tensor]:
    """Return shares in which the liars' are off by noise of the given norm in one tensor."""
    shares = shares_of(decoder.code, gradient_of(decoder.code))
    cut = columns_of(sections_for(decoder.code), number)
    for slot in liars:
        shares[slot] = shares[slot].clone()
        noise = torch.randn(cut.stop - cut.start, generator=seeded(slot))
        shares[slot][cut] += size * noise / noise.norm()
    return shares


def errors_of(decoded: Decoded, code: Code) -> list[float]:
    """Return the relative error of each tensor."""
    assert decoded.gradient is not None
    truth, sections = gradient_of(code).view(-1, code.compression), sections_for(code)
    found = decoded.gradient.view(-1, code.compression)
    cuts = [columns_of(sections, number) for number in range(len(TENSORS))]
    return [float((found[cut] - truth[cut]).norm() / truth[cut].norm()) for cut in cuts]


def decoded_from(shares: Mapping[int, Tensor], looking: bool = False, decoder: RealDecoder = DECODER) -> Decoded:
    return decode(decoder, dict(shares), looking=looking, sections=sections_for(decoder.code))


@pytest.mark.parametrize("looking", [False, True], ids=["comparing", "looking"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_lies_about_the_gradient_are_named_beside_statistics_of_any_size(
    number: int, size: float, looking: bool
) -> None:
    decoded = decoded_from(lie_in(number, size), looking)
    assert decoded.corrupt_slots == LIARS
    assert max(errors_of(decoded, DECODER.code)) < 1e-5
    for outcome in decoded.classes:
        assert outcome.residual <= outcome.tolerance < 1e-3 * outcome.norm
        assert outcome.relative_error < 1e-3


@pytest.mark.parametrize("looking", [False, True], ids=["comparing", "looking"])
@pytest.mark.parametrize("size", [1e6, 1e12])
def test_lies_about_the_statistics_are_named(size: float, looking: bool) -> None:
    assert decoded_from(lie_in(3, size), looking).corrupt_slots == LIARS


@pytest.mark.parametrize("looking", [False, True], ids=["comparing", "looking"])
@pytest.mark.parametrize("liars", [(1,), (4,), LIARS])
@pytest.mark.parametrize("size", [1e-11, 1e-9, 1e-6])
def test_lies_in_a_small_tensor_are_left_out_though_noise_of_the_class_could_be_as_large(
    size: float, liars: tuple[int, ...], looking: bool
) -> None:
    """The tensor's gradient is 1e-9 of its class. Honest rows may be off by 1e-6 of the class, so nobody is accused."""
    decoded = decoded_from(lie_in(1, size, liars), looking)
    assert decoded.suspect_slots == liars
    assert decoded.corrupt_slots == ()
    assert max(errors_of(decoded, DECODER.code)) < 1e-5


def test_each_liar_is_found_in_a_tensor_of_its_own() -> None:
    shares = lie_in(0, 1.0, (1,)) | {4: lie_in(3, 1e9, (4,))[4]}
    assert decoded_from(shares).corrupt_slots == LIARS
    shares = lie_in(0, 1.0, (1,)) | {4: lie_in(1, 1e-8, (4,))[4]}
    decoded = decoded_from(shares)
    assert (decoded.corrupt_slots, decoded.suspect_slots) == ((1,), (4,))
    assert max(errors_of(decoded, DECODER.code)) < 1e-5


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_a_tensor_that_is_nothing_but_noise_costs_no_honest_node_anything(number: int, seed: int) -> None:
    """An example is the gradient of a bias before BatchNorm: 0 in exact arithmetic, but different on each machine."""
    code, sections = DECODER.code, sections_for(DECODER.code)
    gradient = gradient_of(code, seed)
    shares = shares_of(code, gradient)
    cut = columns_of(sections, number)
    rng = seeded(seed)
    for share in shares.values():
        share[cut] = 1e-7 * torch.randn(cut.stop - cut.start, generator=rng)
    decoded = decoded_from(shares)
    assert decoded.status is DecodeStatus.CLEAN
    liar = shares | {3: -shares[3]}
    assert decoded_from(liar).corrupt_slots == (3,)
    assert decoded_from(liar).suspect_slots == ()


def test_one_node_of_another_make_is_left_out_of_such_a_tensor_and_not_accused() -> None:
    shares = lie_in(1, 1e-7, (3,))
    decoded = decoded_from(shares)
    assert (decoded.corrupt_slots, decoded.suspect_slots) == ((), (3,))


@pytest.mark.parametrize("decoder", [fourier_decoder(byzantine=s, compression=k) for s, k in [(1, 3), (5, 10)]])
def test_a_tensor_of_noise_shields_no_liar_in_another(decoder: RealDecoder) -> None:
    code, liars = decoder.code, tuple(range(decoder.byzantine))
    sections, shares = sections_for(code), lie_in(1, 3e-10, liars, decoder)
    cut, rng = columns_of(sections, 2), seeded(1)
    for share in shares.values():
        share[cut] = 1e-7 * torch.randn(cut.stop - cut.start, generator=rng)
    decoded = decoded_from(shares, decoder=decoder)
    assert decoded.suspect_slots == liars
    assert decoded.odd_tensors == (2,)
    assert errors_of(decoded, code)[1] < 1e-5


def test_noise_of_different_size_in_tensors_of_different_width_makes_no_suspects() -> None:
    code, suspected = DECODER.code, 0
    sections = Sections.of([(60_000, "parameters"), (2, "parameters"), (600, "parameters")], compression=6)
    for seed in range(20):
        rng = seeded(seed)
        gradient = torch.randn(sections.num_columns * 6, generator=rng)
        gradient[-600:] = 0  # a layer without a gradient
        shares = shares_of(code, gradient)
        for share in shares.values():
            for cut, size in [(slice(0, 10_000), 9e-7), (slice(10_000, 10_001), 3e-5)]:
                noise = torch.randn(cut.stop - cut.start, generator=rng)
                share[cut] += size * share[cut].norm() * noise / noise.norm()
        suspected += bool(DECODER.decode(shares, sections=sections).suspect_slots)
    assert suspected <= 1


def test_tensors_without_entries_are_left_out() -> None:
    sections = Sections.of([(0, "buffers"), (7, "parameters"), (0, "parameters")], compression=6)
    assert (sections.stops, sections.classes, sections.names) == ((2,), (0,), ("parameters",))
    with pytest.raises(ConfigurationError, match="got only empty tensors"):
        Sections.of([(0, "parameters")], compression=6)


def test_a_class_that_stands_still_is_compared_and_no_more() -> None:
    """For frozen weights, nothing is projected or solved for as long as all shares agree."""
    sections = Sections.of([(600, "parameters"), (60, "buffers")], compression=6)
    gradient = torch.zeros(660)
    gradient[:600] = 1e-12 * torch.randn(600, generator=seeded(0))
    memory = Memory()
    decoded = DECODER.decode(shares_of(DECODER.code, gradient), sections=sections, memory=memory)
    assert decoded.gradient is not None
    assert torch.equal(decoded.gradient, gradient)
    assert not memory.is_disputed


def test_a_failure_says_which_class_failed() -> None:
    for number, name in [(0, "parameters"), (3, "buffers")]:
        decoded = decoded_from(lie_in(number, 1e3 * SIZES[number], (0, 1, 2)))
        assert (decoded.status, decoded.failed_classes) == (DecodeStatus.UNDECODABLE, (name,))


def test_a_class_in_which_nothing_changes_is_as_precise_as_can_be() -> None:
    code = DECODER.code
    sections = Sections.of([(60, "parameters"), (600, "buffers")], compression=6)
    gradient = torch.zeros(660)
    gradient[:60] = torch.randn(60, generator=seeded(0))
    decoded = DECODER.decode(shares_of(code, gradient), sections=sections)
    assert decoded.relative_error == decoded.classes[0].relative_error < 1e-3
    assert decoded.classes[1].relative_error == 0


@given(seed=st.integers(0, 2**32), number=st.integers(0, 4), decade=st.floats(-14, 3), num_liars=st.integers(0, 2))
def test_the_bound_of_each_class_holds_whatever_is_sent(seed: int, number: int, decade: float, num_liars: int) -> None:
    liars = tuple(np.random.default_rng(seed).permutation(10)[:num_liars].tolist())
    decoded = decoded_from(lie_in(number, 10**decade * SIZES[number], liars))
    assert decoded.gradient is not None
    truth, sections = gradient_of(DECODER.code).view(-1, 6).double(), sections_for(DECODER.code)
    error = decoded.gradient.view(-1, 6).double() - truth
    squares = np.array([[float(error[columns_of(sections, place)].square().sum())] for place in range(len(TENSORS))])
    for outcome, square in zip(decoded.classes, sections.by_class(squares)[:, 0], strict=True):
        assert math.sqrt(square) <= outcome.error_bound
    assert set(decoded.corrupt_slots) | set(decoded.suspect_slots) <= set(liars)
