import io

import numpy as np
import pytest
import torch
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
