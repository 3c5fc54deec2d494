import sys

import pytest

from benchmarks.server_memory import measure
from solon_fl import SolonConfig

MB = 1e6
CONFIG = SolonConfig(num_nodes=14, byzantine=2, compression=3)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc"),
]


def test_the_server_s_memory_is_flat_over_200_rounds() -> None:
    peaks = measure(CONFIG, dim=300_000, rounds=200)
    assert len(peaks) == 200
    assert max(peaks[100:]) <= max(peaks[20:100]) + 10 * MB, "a kept model or round of shares would be 120 MB more"


def test_the_server_needs_the_shares_and_two_models() -> None:
    dim = 6_000_000
    peaks = measure(CONFIG, dim, rounds=5)
    model, shares = 4 * dim, 14 * 4 * dim / 3
    assert max(peaks) <= shares + 2 * model + 18 * MB  # 18 MB for the decoder's blocks and malloc; a model is 24 MB
