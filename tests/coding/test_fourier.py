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
    np.testing.assert_allclose(code.generator.T @ code.generator, expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(code.generator, axis=1), 1, rtol=1e-12)


@given(code=codes)
def test_rows_are_the_trigonometric_functions_of_the_docstring(code: FourierCode) -> None:
    angles = 2 * np.pi * np.arange(code.group_size) / code.group_size
    columns = [] if code.compression % 2 == 0 else [np.full(code.group_size, np.sqrt(1 / 2))]
    frequency = 1 if code.compression % 2 else 0.5
    while len(columns) < code.compression:
        columns += [np.cos(frequency * angles), np.sin(frequency * angles)]
        frequency += 1
    expected = np.sqrt(2 / code.compression) * np.stack(columns, axis=1)
    if code.group_size % code.compression == 0:
        step = code.group_size // code.compression
        np.testing.assert_array_equal(code.generator[::step], np.eye(code.compression))
        rotation = np.linalg.lstsq(expected, code.generator, rcond=None)[0]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(code.compression), atol=1e-12)
        expected = expected @ rotation
    np.testing.assert_allclose(code.generator, expected, atol=1e-12)


@given(code=codes, seed=st.integers(0, 2**32))
def test_shares_are_values_of_a_polynomial_at_the_roots_of_unity(code: FourierCode, seed: int) -> None:
    message = np.random.default_rng(seed).normal(size=code.compression)
    values = code.multipliers * (code.generator @ message)
    powers = code.points[:, None] ** np.arange(code.compression)
    coefficients = np.linalg.lstsq(powers, values, rcond=None)[0]
    np.testing.assert_allclose(powers @ coefficients, values, atol=1e-10)
    assert np.linalg.norm(coefficients) == pytest.approx(np.linalg.norm(message))
    np.testing.assert_allclose(np.abs(code.points), 1)


@given(code=codes, turn=st.integers(0, 14))
def test_turning_the_slots_changes_no_singular_value(code: FourierCode, turn: int) -> None:
    rows = np.arange(code.compression)
    turned = (rows + turn) % code.group_size
    np.testing.assert_allclose(
        np.linalg.svd(code.generator[turned])[1], np.linalg.svd(code.generator[rows])[1], atol=1e-12
    )


@pytest.mark.parametrize("compression", [1, 2, 5, 6])
def test_parity_annihilates_the_generator(compression: int) -> None:
    code = FourierCode(group_size=5 + compression, compression=compression)
    np.testing.assert_allclose(code.parity @ code.generator, 0, atol=1e-12)
    np.testing.assert_allclose(code.parity @ code.parity.T, np.eye(5), atol=1e-12)
