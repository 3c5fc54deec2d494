import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from solon_fl.config import DownlinkName
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Outcome
from tests.simulations.run.small import EXACT, curve, run


def test_ray_that_is_not_installed_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"solon-fl\[ray\]"):
        run(engine="ray")


@pytest.mark.slow
@pytest.mark.parametrize("downlink", ["full", "delta"])
def test_flowers_own_engine_gives_the_same_model_bit_for_bit(downlink: DownlinkName, tmp_path: Path) -> None:
    """In a process of its own: Ray starts others, and warns about its future."""
    pytest.importorskip("ray")
    outcome = run(config=replace(EXACT, downlink=downlink), rounds=3)
    command = [sys.executable, "-c", "from solon_fl.cli import main; main()", "simulate"]
    options = "--nodes 14 --compression 3 --model logistic --attack reverse --rounds 3"
    settings = f"--set batch_size=8 --set engine=ray --set code=exact --set downlink={downlink}"
    done = subprocess.run(
        [*command, *options.split(), *settings.split(), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    on_ray = Outcome.load(tmp_path / "rounds.jsonl")
    assert on_ray.model_sha256 == outcome.model_sha256, "that of an honest run in this process"
    assert curve(on_ray) == curve(outcome)
    # Replies trickle in here: a group may be decoded before a slow node, liar or not, was heard.
    different = {number for number, kinds in on_ray.offences.items() if "different" in kinds}
    assert different
    assert different <= on_ray.liars
