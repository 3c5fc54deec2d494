import io

import numpy as np
import pytest
import torch
from flwr.app import Array
from torch import Tensor

from solon_fl.wire import to_array, trusted_tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(5).double(),
        torch.tensor(2.5),
        torch.zeros(0),
        torch.arange(6).reshape(2, 3),
        torch.randn(4, 6).t(),
        torch.randn(3).half(),
    ],
)
def test_an_array_is_what_numpy_would_save(tensor: Tensor) -> None:
    array = to_array(tensor)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape))
    assert array.data == buffer.getvalue()
    assert (array.dtype, array.shape) == (str(tensor.numpy().dtype), tuple(tensor.shape))
    torch.testing.assert_close(trusted_tensor(array), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16, torch.float64, torch.complex64])
def test_a_trusted_array_is_what_flower_reads_of_it_and_may_be_written_to(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = to_array((100 * torch.randn(shape)).to(dtype))
    expected = torch.from_numpy(array.numpy())
    if expected.numel():
        monkeypatch.setattr(Array, "numpy", lambda _: pytest.fail("np.load is slow"))
    read = trusted_tensor(array)
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
    assert torch.equal(read, expected)
    before = bytes(array.data)
    read.zero_()
    assert array.data == before


def test_an_array_in_columns_is_read_too() -> None:
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert torch.equal(trusted_tensor(Array(columns)), torch.from_numpy(columns))
