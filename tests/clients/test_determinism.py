from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solon_fl.clients.determinism import deterministic
from solon_fl.config import Verification
from tests.support import Regression, initial_model, small_config, train, vector_of

CPU = torch.device("cpu")
BACKENDS: Any = torch.backends
HAS_NEWER = hasattr(BACKENDS, "fp32_precision")
newer = pytest.mark.skipif(not HAS_NEWER, reason="torch has no newer settings of precision")


def operations() -> list[Any]:
    cudnn, mkldnn = BACKENDS.cudnn, BACKENDS.mkldnn
    return [cudnn.conv, cudnn.rnn, BACKENDS.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul] if HAS_NEWER else []


def precisions() -> list[str]:
    return [operation.fp32_precision for operation in operations()]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before, enabled = precisions(), BACKENDS.cudnn.enabled
    yield
    BACKENDS.cudnn.enabled = enabled
    if HAS_NEWER:
        BACKENDS.fp32_precision = BACKENDS.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for operation, precision in zip(operations(), before, strict=True):
        operation.fp32_precision = precision


@newer
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("place", ["everything", "cudnn", "convolutions", "products"])
def test_the_newer_settings_of_precision_are_obeyed_and_restored(place: str, precision: str) -> None:
    places = {
        "everything": BACKENDS,
        "cudnn": BACKENDS.cudnn,
        "convolutions": BACKENDS.cudnn.conv,
        "products": BACKENDS.cuda.matmul,
    }
    places[place].fp32_precision = precision
    before = precisions()
    for _ in range(2):
        with deterministic(0, CPU):
            assert set(precisions()) <= {"ieee", "none"}
        assert precisions() == before


@newer
def test_what_follows_the_setting_for_everything_still_does() -> None:
    BACKENDS.fp32_precision = "ieee"
    with deterministic(0, CPU):
        pass
    BACKENDS.fp32_precision = "tf32"
    assert BACKENDS.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matrix_products_are_in_full_precision(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = precisions()
    with deterministic(0, CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32
    assert precisions() == before


def test_precision_and_kernels_are_restored_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ValueError, match="in the loss"), deterministic(0, CPU):
        raise ValueError("in the loss")
    assert torch.get_float32_matmul_precision() == "high"
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("enabled", [False, True])
def test_cudnn_is_enabled_only_where_it_was(enabled: bool) -> None:
    torch.backends.cudnn.enabled = enabled
    with deterministic(0, CPU):
        assert torch.backends.cudnn.enabled == enabled
    assert torch.backends.cudnn.enabled == enabled


@pytest.mark.parametrize("verification", ["algebra", "digest"])
def test_runs_in_several_threads_do_not_disturb_each_other(verification: Verification) -> None:
    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(7, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    config, model = (
        small_config(verification=verification, group_size=7, batches_per_group=2),
        initial_model(make_model),
    )

    def run(_: int) -> tuple[Tensor, set[str]]:
        result, reports = train(config, client=Regression(make_model), model=model, rounds=3, timeout=60)
        return vector_of(result.arrays), {group.status for report in reports for group in report.groups}

    expected, _ = run(0)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        for found, statuses in pool.map(run, range(3)):
            assert statuses == {"clean"}
            assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
