import pytest
from torch import Tensor

from tests.support import train, vector_of


@pytest.fixture(scope="module")
def honest_model() -> Tensor:
    return vector_of(train()[0].arrays)
