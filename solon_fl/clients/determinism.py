"""What makes all nodes of a group compute the same, as far as torch can.

Most of torch's settings are those of the whole process, its random state among them: one thread at a time computes.
What other threads of the program draw from that state meanwhile, by building a model, say, still disturbs dropout.
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
    """Make what is computed inside the same on all nodes of a group, as far as kernels allow.

    Seeds torch (dropout, augmentation) and restores its state afterwards; takes cuDNN's deterministic kernels, no
    benchmarking, and full float32: no TF32 or bfloat16 in convolutions, recurrences and matrix products. What differs
    still, between other hardware or thread counts, is float noise: see rtol.
    """
    with seeded(seed, device), _same_kernels(), _full_precision():
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch, on the CPU and on this device, and restore its random state afterwards.

    Inside, the device is the current one, where ``tensor.cuda()`` puts tensors.
    """
    devices = [device] if device.type == "cuda" else []
    current = torch.cuda.device(device) if devices else nullcontext()
    with _one_thread, torch.random.fork_rng(devices=devices), current:
        # torch.manual_seed does both; but without CUDA it queues the call, with a formatted stack, for ever.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def strictly_deterministic(wanted: bool) -> Iterator[None]:
    """Let torch take deterministic kernels everywhere, and warn where it has none, if wanted."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS is not deterministic
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
    """Let cuDNN, where it is enabled, take deterministic kernels without trying which is fastest."""
    cudnn = torch.backends.cudnn  # its flags() raise where precisions were set through torch's newer settings
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute with float32 as such.

    torch has two kinds of settings for that, and reading the older raises once the newer were used. The older are taken
    where they can be read, so that code inside can read them too.
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
            operation.fp32_precision = "none"  # what stands higher up, which is likely where it came from
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision


def _set_older(convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _operations() -> list[Any]:
    """Return those that have a precision of their own by torch's newer settings: none before torch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return [cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul]
