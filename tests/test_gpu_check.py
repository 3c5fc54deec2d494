"""`make gpu-check` reports a missing GPU, goes on after a part that fails, and also runs on the CPU."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_check
from benchmarks.gpu_parts import PARTS, Asked, Findings, WrongError
from benchmarks.on_device import on_device
from solon_fl import ExactCode, ExactDecoder


def test_without_a_gpu_it_says_so_and_is_content(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out.startswith("no GPU here: ")


def test_a_part_that_fails_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(asked: Asked) -> Iterator[tuple[str, Findings]]:
        yield "first", {"number": 1.5}
        raise ValueError("of no use")

    def right(asked: Asked) -> Iterator[tuple[str, Findings]]:
        yield "first", {"number": 2.5}

    monkeypatch.setattr(gpu_check, "PARTS", {"broken": broken, "right": right})
    output = tmp_path / "found.json"
    assert gpu_check.main(["--device", "cpu", "--output", str(output)]) == 1
    assert "broken: ValueError: of no use" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["device"].startswith("CPU")
    assert found["parts"] == {"broken": "ValueError: of no use", "right": {"first": {"number": 2.5}}}
    assert gpu_check.main(["--device", "cpu", "--seconds", "1", "--output", str(output)]) == 1
    assert json.loads(output.read_text())["parts"]["right"] == "left out: time is up"


def test_codes_compute_on_the_device_while_they_are_told_to() -> None:
    code = ExactCode(group_size=3, compression=1)
    gradient, seen = torch.ones(4), list[int]()
    encode = ExactCode._encode

    def noting(self: ExactCode, given: Tensor, slot: int) -> Tensor:
        seen.append(given.data_ptr())
        return encode(self, given, slot)

    with pytest.MonkeyPatch.context() as patch, on_device(torch.device("cpu")) as moved:
        patch.setattr(ExactCode, "_encode", noting)
        shares = {slot: code.encode(gradient, slot) for slot in range(3)}
        decoded = ExactDecoder(code, byzantine=1).decode(shares, dim=4)
    assert decoded.gradient is not None
    assert torch.equal(decoded.gradient, gradient)
    assert dict(moved) == {"encode": 3, "decode": 1}
    assert gradient.data_ptr() not in seen
    code.encode(gradient, 0)
    assert moved["encode"] == 3


class FakeRun:
    """Replaces subprocess.run, because the tests that it runs would take too long."""

    def __init__(self, returncode: int, stdout: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, ""
        self.given: dict[str, Any] = {}

    def __call__(self, command: list[str], **settings: Any) -> "FakeRun":
        self.given = {"command": command, **settings}
        return self


@pytest.mark.parametrize(
    ("returncode", "stdout", "complaint"),
    [
        (0, "on cpu: 12 encodes, 3 decodes\n28 passed, 2 deselected in 3.1s\n", None),
        (1, "on cpu: 1 encodes, 0 decodes\nFAILED tests/a.py::b - assert 1\n1 failed, 2 passed", "tests/a.py::b"),
        (0, "28 passed in 3.1s\n", "pytest exits with 0"),  # but nothing was computed on the device
        (5, "on cpu: 0 encodes, 0 decodes\nno tests ran", "pytest exits with 5"),
    ],
)
def test_what_pytest_says_is_read(
    returncode: int, stdout: str, complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(returncode, stdout)
    monkeypatch.setattr(subprocess, "run", run)
    asked = Asked(torch.device("cpu"), small=True, ends=time.monotonic() + 100)
    if complaint is None:
        ((_, found),) = PARTS["tests"](asked)
        assert found == {"passed": 28, "calls": "on cpu: 12 encodes, 3 decodes"}
    else:
        with pytest.raises(WrongError, match=complaint):
            list(PARTS["tests"](asked))
    assert run.given["env"]["SOLON_DEVICE"] == "cpu"
    assert Path(run.given["command"][-1]).exists()
    deselected = [word.partition("=")[2] for word in run.given["command"] if word.startswith("--deselect=")]
    assert deselected
    for test in deselected:
        file, _, name = test.partition("::")
        assert f"def {name}(" in Path(file).read_text()


@pytest.mark.slow
def test_all_other_parts_run_on_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: part for name, part in PARTS.items() if name != "tests"}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    output = tmp_path / "found.json"
    status = gpu_check.main(["--device", "cpu", "--small", "--output", str(output)])
    found = json.loads(output.read_text())
    assert status == 0, found
    assert list(found["parts"]) == list(parts)
    assert all(isinstance(findings, dict) and findings for findings in found["parts"].values())
