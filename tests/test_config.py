import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from solon_fl.config import EARLY_ERROR, SolonConfig
from solon_fl.errors import ConfigurationError


def test_group_size_and_batches_default_to_the_theorems_minimum() -> None:
    config = SolonConfig(num_nodes=22, byzantine=2, stragglers=1, compression=6)
    assert (config.group_size, config.num_groups, config.batches_per_group) == (11, 2, 11)
    assert config.make_code().group_size == 11
    assert config.make_code() is config.make_code()
    assert config.make_decoder() is config.make_decoder()
    assert config.make_decoder().code is config.make_code()
    assert (config.make_decoder().byzantine, config.make_decoder().stragglers) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 23}, "num_nodes=23, group_size=10; use 20 or 30 nodes"),
        ({"num_nodes": 24}, "use 20 or 30 nodes, or group_size=12, which divides 24 and is at least 10"),
        ({"num_nodes": 7}, "num_nodes=7, group_size=10; use 10 nodes"),
        ({"group_size": 9}, "group_size=9, byzantine=2, stragglers=0, compression=6; raise group_size to 10"),
        ({"group_size": 5}, "compression=6; raise group_size to 10"),
        ({"group_size": 5, "verification": "digest"}, "raise group_size to 8, or lower one of the others"),
        ({"byzantine": -1}, "byzantine=-1"),
        ({"compression": 0}, "compression=0"),
        ({"compression": 2.0}, "compression=2.0"),
        ({"seed": -3}, "seed=-3"),
        ({"num_nodes": True}, "num_nodes=True"),
        ({"compression": 6.0}, "compression=6.0; write 6"),
        ({"num_nodes": "20"}, "num_nodes must be a whole number .* got num_nodes='20'; give it as a number"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"rtol": "1e-6"}, "rtol must be a number; got rtol='1e-6'; give it as a number, not as a string"),
        ({"rtol": True}, "rtol must be a number; got rtol=True"),
        ({"group_weights": ("1", 2)}, "group_weights must be a number; got group_weights='1'"),
        ({"code": "hamming"}, "code must be one of exact, fourier; got code='hamming'"),
        ({"mode": "delta"}, "mode must be one of gradient, update; got mode='delta'"),
        ({"grouping": "random"}, "grouping='random'"),
        ({"regroup": "daily"}, "regroup must be one of never, round; got regroup='daily'"),
        (
            {"regroup": "round", "grouping": "silo"},
            "regroup='round' needs grouping='server', because nodes of different silos hold different data",
        ),
        ({"on_group_failure": "guess"}, "on_group_failure='guess'"),
        ({"group_weights": (1.0,)}, r"group_weights must be 2 positive numbers, one per group; got \(1.0,\)"),
        ({"group_weights": (1.0, float("nan"))}, "nan"),
    ],
)
def test_bad_settings_are_refused_with_value_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SolonConfig(**{"num_nodes": 20, "byzantine": 2, "compression": 6, **changes})


def test_numbers_of_numpy_are_numbers_and_become_plain_ones() -> None:
    numbers: dict[str, Any] = {
        "num_nodes": np.int64(20),
        "byzantine": np.int32(2),
        "compression": np.uint8(6),
        "stragglers": np.int64(0),
        "seed": np.int64(3),
        "batches_per_group": np.int16(4),
        "quarantine_after": np.int64(1),
        "rtol": np.float32(1e-6),
        "group_weights": np.array([1.0, 2.0]),
    }
    config = SolonConfig(**numbers)
    for name in numbers:
        value = getattr(config, name)
        assert type(value) in (int, float, tuple), name
    assert config == SolonConfig(**{**numbers, "rtol": float(np.float32(1e-6)), "num_nodes": 20})
    json.dumps(asdict(config))


def test_a_misspelt_setting_fails() -> None:
    with pytest.raises(TypeError, match="compresion"):
        SolonConfig(num_nodes=20, byzantine=2, compresion=6)  # type: ignore[call-arg]  # the point of the test


def test_with_digests_nothing_is_said_of_a_decoder_that_the_run_does_not_use() -> None:
    # Algebra would need r = 25 for this k, with a certificate of 1 or more; warnings are errors here.
    config = SolonConfig(num_nodes=20, byzantine=5, compression=15, verification="digest")
    decoder = config.make_decoder()
    assert (config.group_size, decoder.byzantine, decoder.stragglers) == (20, 0, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byzantine": -1}, "byzantine must be a whole number >= 0; got byzantine=-1"),
        ({"byzantine": "2"}, "byzantine must be a whole number"),
    ],
)
def test_numbers_of_liars_are_whole(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SolonConfig(**{"num_nodes": 14, "byzantine": 2, "compression": 3, **changes})


@pytest.mark.parametrize(("s", "k", "precise"), [(1, 3, 4), (2, 6, 8), (3, 8, 12), (5, 5, 11)])
def test_as_many_nodes_are_precise_as_bound_the_error_by_early_error(s: int, k: int, precise: int) -> None:
    config = SolonConfig(num_nodes=2 * s + k, byzantine=s, compression=k)
    decoder = config.make_decoder()
    assert config.num_precise == precise
    assert decoder.expected_error(precise) <= EARLY_ERROR
    assert precise == s + k or decoder.expected_error(precise - 1) > EARLY_ERROR


@pytest.mark.parametrize(
    ("changes", "precise"),
    [({"rtol": 1e-9}, 11), ({}, 12), ({"rtol": 5e-5}, 14), ({"code": "exact"}, 11), ({"verification": "digest"}, 8)],
)
def test_less_noise_needs_fewer_and_who_makes_no_errors_the_fewest(changes: dict[str, Any], precise: int) -> None:
    assert SolonConfig(num_nodes=14, byzantine=3, compression=8, group_size=14, **changes).num_precise == precise
