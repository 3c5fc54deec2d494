import sys

import pytest

from benchmarks.server_memory import measure
from solon_fl import SolonConfig

MB = 1e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_server_s_memory_is_flat_over_200_rounds() -> None:
    config = SolonConfig(num_nodes=14, byzantine=2, compression=3)
    peaks = measure(config, dim=300_000, rounds=200)
    assert len(peaks) == 200
    model, shares = 1.2 * MB, 14 * 0.4 * MB
    assert max(peaks[100:]) <= max(peaks[20:100]) + model, "a kept model or round of shares would be 120 MB more"
    assert max(peaks) <= shares + 4 * model + 20 * MB  # blocks of the decoder, and what malloc keeps
