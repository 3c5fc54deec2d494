import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.threads import check_threads, limited_threads


def numpys() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_torch_and_numpy_compute_with_as_many_threads_and_then_as_before() -> None:
    before = torch.get_num_threads(), numpys()
    for number in (1, 2):
        with limited_threads(number):
            assert (torch.get_num_threads(), numpys()) == (number, {number})
    assert (torch.get_num_threads(), numpys()) == before


def test_numbers_that_no_machine_has_are_refused() -> None:
    for number in (0, 10**6):
        with pytest.raises(ConfigurationError, match=f"from 1 to .* on this machine, .*; got threads={number}"):
            check_threads(number)
