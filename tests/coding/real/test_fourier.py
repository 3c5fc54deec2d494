import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import FourierCode

codes = st.builds(
    lambda compression, spare: FourierCode(group_size=compression + spare, compression=compression),
    st.integers(1, 6),
    st.integers(0, 8),
)


@given(code=codes)
def test_columns_are_orthogonal_and_rows_of_norm_1(code: FourierCode) -> None:
    expected = code.group_size / code.compression * np.eye(code.compression)
    np.testing.assert_allclose(code.unstretched.T @ code.unstretched, expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(code.unstretched, axis=1), 1, rtol=1e-12)


@given(code=codes)
def test_rows_are_the_trigonometric_functions_of_the_docstring(code: FourierCode) -> None:
    angles = 2 * np.pi * np.arange(code.group_size) / code.group_size
    columns = [] if code.compression % 2 == 0 else [np.full(code.group_size, np.sqrt(1 / 2))]
    frequency = 1 if code.compression % 2 else 0.5
    while len(columns) < code.compression:
        columns += [np.cos(frequency * angles), np.sin(frequency * angles)]
        frequency += 1
    expected = np.sqrt(2 / code.compression) * np.stack(columns, axis=1)
    np.testing.assert_allclose(code.unstretched, expected, atol=1e-12)


@given(code=codes)
def test_k_slots_spread_evenly_send_entries_as_they_are(code: FourierCode) -> None:
    slots = [chunk * code.group_size // code.compression for chunk in range(code.compression)]
    np.testing.assert_array_equal(code.generator[slots], np.eye(code.compression))
    exchange = np.linalg.lstsq(code.unstretched, code.generator, rcond=None)[0]
    np.testing.assert_allclose(code.unstretched @ exchange, code.generator, atol=1e-12)
    if code.group_size % code.compression == 0:
        np.testing.assert_allclose(exchange.T @ exchange, np.eye(code.compression), atol=1e-12)
    largest = np.linalg.svd(code.unstretched[slots])[1][0]
    assert code.stretch == pytest.approx(largest, rel=1e-9)


@given(code=codes, seed=st.integers(0, 2**32))
def test_shares_are_values_of_a_polynomial_at_the_roots_of_unity(code: FourierCode, seed: int) -> None:
    message = np.random.default_rng(seed).normal(size=code.compression)
    values = code.multipliers * (code.generator @ message)
    powers = code.points[:, None] ** np.arange(code.compression)
    coefficients = np.linalg.lstsq(powers, values, rcond=None)[0]
    np.testing.assert_allclose(powers @ coefficients, values, atol=1e-10)
    coefficients = np.linalg.lstsq(powers, code.multipliers * (code.unstretched @ message), rcond=None)[0]
    assert np.linalg.norm(coefficients) == pytest.approx(np.linalg.norm(message))
    np.testing.assert_allclose(np.abs(code.points), 1)


@given(code=codes, turn=st.integers(0, 14))
def test_turning_the_slots_changes_no_singular_value(code: FourierCode, turn: int) -> None:
    rows = np.arange(code.compression)
    turned = (rows + turn) % code.group_size
    np.testing.assert_allclose(
        np.linalg.svd(code.unstretched[turned])[1], np.linalg.svd(code.unstretched[rows])[1], atol=1e-12
    )


@pytest.mark.parametrize("compression", [1, 2, 5, 6])
def test_parity_annihilates_the_generator(compression: int) -> None:
    code = FourierCode(group_size=5 + compression, compression=compression)
    np.testing.assert_allclose(code.parity @ code.generator, 0, atol=1e-12)
    np.testing.assert_allclose(code.parity @ code.parity.T, np.eye(5), atol=1e-12)
