"""Entries that are 0 on every node are decoded as 0 even if they are solved for; other entries keep their digits."""

import pytest
import torch

from solon_fl import RealDecoder
from solon_fl.coding.sections import Sections
from tests.coding.real.problems import decode, fourier_decoder, seeded, shares_of

DECODERS = [fourier_decoder(byzantine=s, compression=k) for s, k in [(1, 3), (2, 6), (5, 5), (5, 10), (3, 20)]]


@pytest.mark.parametrize("spread", [0, 6], ids=["entries of one size", "entries of 1e-6 to 1"])
@pytest.mark.parametrize("looking", [False, True], ids=["interpolated", "least squares"])
@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_zeros_that_are_solved_for_are_zeros(decoder: RealDecoder, looking: bool, spread: int) -> None:
    code, rng = decoder.code, seeded(1)
    gradient = torch.randn(100_000 * code.compression, generator=rng)
    gradient *= 10 ** (-spread * torch.rand(gradient.shape, generator=rng))
    gradient[torch.rand(gradient.shape, generator=rng) < 0.5] = 0
    shares = shares_of(code, gradient)
    liars = [chunk * code.group_size // code.compression for chunk in range(decoder.byzantine)]  # systematic slots
    for slot in liars:
        shares[slot] = -shares[slot]
    decoded = decode(decoder, shares, looking=looking)
    assert decoded.corrupt_slots == tuple(liars)
    assert decoded.gradient is not None
    assert not decoded.gradient[gradient == 0].any()
    assert float((decoded.gradient - gradient).norm()) < 1e-5 * float(gradient.norm())


@pytest.mark.parametrize("looking", [False, True], ids=["interpolated", "least squares"])
@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_tensors_of_any_size_keep_their_digits(decoder: RealDecoder, looking: bool) -> None:
    """Twelve layers have gradients a tenth as large as that of the next layer; a buffer holds statistics of 1e9."""
    code, rng = decoder.code, seeded(2)
    tensors = [(size, "parameters") for size in [64, 1, 7, 100] * 3] + [(5, "buffers"), (64, "parameters")]
    sections = Sections.of(tensors, compression=code.compression)
    gradient = torch.randn(sections.num_columns * code.compression, generator=rng)
    sizes = [10.0 ** (number - 12) for number in range(12)] + [1e9, 1.0]
    starts = [0, *sections.stops]
    for number, size in enumerate(sizes):
        gradient[starts[number] * code.compression : starts[number + 1] * code.compression] *= size
    shares = shares_of(code, gradient)
    liars = tuple(range(decoder.byzantine))
    for slot in liars:
        shares[slot] = 3 * shares[slot]
    found = [(shares_of(code, gradient), ()), (shares, liars)]
    for received, lying in found:
        decoded = decode(decoder, received, looking=looking, sections=sections)
        assert decoded.corrupt_slots == lying
        assert decoded.gradient is not None
        for number in range(len(tensors)):
            cut = slice(starts[number] * code.compression, starts[number + 1] * code.compression)
            error = float((decoded.gradient[cut] - gradient[cut]).norm() / gradient[cut].norm())
            assert error < 1e-5, (number, error)


@pytest.mark.parametrize("size", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("decoder", DECODERS[:4], ids=repr)
def test_zeros_of_all_honest_nodes_are_zeros_though_a_quiet_liar_sends_them_as_entries(
    decoder: RealDecoder, size: float
) -> None:
    """Half of the rows of an embedding are unused, and the lie passes for noise."""
    code = decoder.code
    gradient = torch.randn(1000, 10 * code.compression, generator=seeded(3))
    gradient[::2] = 0
    shares = shares_of(code, gradient.reshape(-1))
    unused = shares[0] == 0
    noise = size * decoder.rtol * code.group_size**0.5 * float(shares[0].norm())
    shares[0] = shares[0] + unused * noise / float(unused.sum()) ** 0.5
    decoded = decoder.decode(shares)
    assert decoded.ok
    assert decoded.gradient is not None
    assert not decoded.gradient[gradient.reshape(-1) == 0].any()
    assert float((decoded.gradient - gradient.reshape(-1)).norm()) <= decoded.error_bound
