"""Run codes and decoders on a device, for tests and trials whose tensors are on the CPU.

As a pytest plugin:  SOLON_DEVICE=cuda python -m pytest -p benchmarks.on_device tests/coding
SOLON_DEVICE=cpu is a substitute that computes on copies.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from solon_fl.coding import Code, Decoded, Decoder

__all__ = ["on_device"]

VARIABLE = "SOLON_DEVICE"
MOVED = "calls-on-device"

_stack = ExitStack()
_moved = Counter[str]()


@contextmanager
def on_device(device: torch.device) -> Iterator[Counter[str]]:
    """Make all codes and decoders compute on the device and return results on the CPU; yield the number of calls."""
    encode, decode, moved = Code.encode, Decoder.decode, Counter[str]()

    def there(value: Any) -> Any:
        is_plain = isinstance(value, Tensor) and value.device.type == "cpu"
        return value.to(device, copy=True) if is_plain else value

    def encode_there(self: Code, gradient: Tensor, slot: int) -> Tensor:
        moved["encode"] += 1
        return encode(self, there(gradient), slot).cpu()

    def decode_there(self: Decoder, shares: Mapping[int, Tensor] | Tensor, *args: Any, **settings: Any) -> Decoded:
        moved["decode"] += 1
        sent = {slot: there(share) for slot, share in shares.items()} if isinstance(shares, Mapping) else there(shares)
        decoded = decode(self, sent, *args, **settings)
        return decoded if decoded.gradient is None else replace(decoded, gradient=decoded.gradient.cpu())

    Code.encode, Decoder.decode = encode_there, decode_there  # type: ignore[method-assign]
    try:
        yield moved
    finally:
        Code.encode, Decoder.decode = encode, decode  # type: ignore[method-assign]


def pytest_configure(config: pytest.Config) -> None:
    if VARIABLE in os.environ:
        global _moved
        _moved = _stack.enter_context(on_device(torch.device(os.environ[VARIABLE])))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput[MOVED] = dict(_moved)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _moved.update(getattr(node, "workeroutput", {}).get(MOVED, {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if VARIABLE in os.environ:
        terminalreporter.line(f"on {os.environ[VARIABLE]}: {_moved['encode']} encodes, {_moved['decode']} decodes")


def pytest_unconfigure() -> None:
    _stack.close()
