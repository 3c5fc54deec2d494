"""Settings that make all nodes of a group compute the same result, as far as torch allows.

Most of these settings, the random state among them, apply to the whole process, so only one thread computes at a time.
Another thread that draws random numbers meanwhile (by building a model, for example) still disturbs dropout.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["deterministic", "seeded", "strictly_deterministic"]

_one_thread = threading.RLock()


@contextmanager
def deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """Make computations inside give the same result on all nodes of a group, as far as kernels allow.

    Seeds torch (for dropout and augmentation) and restores its random state afterwards. Selects cuDNN's deterministic
    kernels without benchmarking, and full float32: no TF32 or bfloat16 in convolutions, recurrences and matrix
    products. Different hardware or thread counts still cause rounding differences; `SolonConfig.rtol` allows for them.
    """
    with seeded(seed, device), _same_kernels(), _full_precision():
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch on the CPU and on this device, and restore its random state afterwards.

    Inside, this device is the current one, to which ``tensor.cuda()`` moves tensors.
    """
    devices = [device] if device.type == "cuda" else []
    current = torch.cuda.device(device) if devices else nullcontext()
    with _one_thread, torch.random.fork_rng(devices=devices), current:
        # Not torch.manual_seed, which does both: without CUDA, it queues a call and its formatted stack forever.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def strictly_deterministic(wanted: bool) -> Iterator[None]:
    """If `wanted`, make torch use deterministic kernels everywhere, and warn where it has none."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    with _one_thread:
        before = torch.are_deterministic_algorithms_enabled()
        warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned_only)


@contextmanager
def _same_kernels() -> Iterator[None]:
    """Make cuDNN, where it is enabled, use deterministic kernels and skip benchmarking."""
    cudnn = torch.backends.cudnn  # not its flags(): they raise after precisions were set through torch's newer settings
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 operations in full float32.

    torch has an older and a newer set of settings for this. Reading the older ones raises once the newer ones were
    used. Use the older ones while they can be read, so that code inside can read them, too.
    """
    operations = _operations()
    before = [operation.fp32_precision for operation in operations]
    try:
        older = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    try:
        if older is None:
            for operation in operations:
                operation.fp32_precision = "ieee"
        else:
            _set_older(False, "highest")
        yield
    finally:
        if older is not None:
            _set_older(*older)
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = "none"  # inherit from the parent setting, as it most likely did before
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision


def _set_older(convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _operations() -> list[Any]:
    """Return the operations with a precision of their own in torch's newer settings; none before torch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return [cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul]
