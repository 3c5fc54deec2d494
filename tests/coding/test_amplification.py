import math

import numpy as np
import pytest

from solon_fl import FourierCode, LinearCode, VandermondeCode
from solon_fl.coding import amplification
from solon_fl.coding.amplification import lagrange_bound, worst_amplification
from tests.oracles import largest_amplification

CODES = [FourierCode, VandermondeCode]


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(("byzantine", "compression"), [(0, 1), (1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (2, 5)])
def test_the_exact_value_is_that_of_brute_force(kind: type[LinearCode], byzantine: int, compression: int) -> None:
    code = kind(byzantine=byzantine, compression=compression)
    for num_rows in range(compression, code.group_size + 1):
        expected = largest_amplification(code.generator, num_rows)
        assert code.worst_amplification(num_rows) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("compression", [1, 2, 3, 4, 5])
def test_lagrange_bound_is_at_least_the_exact_value(kind: type[LinearCode], compression: int) -> None:
    code = kind(byzantine=2, compression=compression)
    bound = lagrange_bound(code.points, code.multipliers, compression)
    for num_rows in range(compression, code.group_size + 1):
        assert bound >= code.worst_amplification(num_rows) * (1 - 1e-9)


def test_amplification_of_a_repetition_code_is_the_root_of_its_size() -> None:
    code = FourierCode(byzantine=2, compression=1)
    assert code.amplification == pytest.approx(math.sqrt(5))


def test_all_rows_of_the_fourier_code_amplify_nothing() -> None:
    code = FourierCode(byzantine=3, compression=4)
    assert code.worst_amplification(code.group_size) == pytest.approx(1)


def test_fewer_rows_amplify_no_less() -> None:
    code = FourierCode(byzantine=2, compression=6)
    values = [code.worst_amplification(num_rows) for num_rows in range(6, 11)]
    assert values == sorted(values, reverse=True)


def test_too_many_subsets_fall_back_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    code = FourierCode(byzantine=3, compression=5)
    exact = worst_amplification(code.generator.tobytes(), 11, 5, True)
    monkeypatch.setattr(amplification, "MAX_SUBSETS", 10)
    worst_amplification.cache_clear()
    assert worst_amplification(code.generator.tobytes(), 11, 5, True) == math.inf
    assert exact <= code.worst_amplification(5) < math.inf
    worst_amplification.cache_clear()


def test_the_worst_rows_need_not_hold_the_first() -> None:
    code = VandermondeCode(byzantine=1, compression=2, nodes=[-10, 0, 0.1, 10])
    assert code.amplification == pytest.approx(largest_amplification(code.generator[1:3], 2))


def test_dependent_rows_amplify_without_limit() -> None:
    generator = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert worst_amplification(generator.tobytes(), 3, 2, False) == math.inf
