import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from solon_fl.errors import ConfigurationError
from tests.simulations.run.small import curve, run


def test_ray_that_is_not_installed_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"solon-fl\[ray\]"):
        run(engine="ray")


@pytest.mark.slow
def test_flowers_own_engine_gives_the_same_curve(tmp_path: Path) -> None:
    """In a process of its own: Ray starts others, and warns about its future."""
    pytest.importorskip("ray")
    outcome = run(attack="reverse", rounds=3)
    command = [sys.executable, "-c", "from solon_fl.cli import main; main()", "simulate"]
    options = "--nodes 14 --compression 3 --model logistic --attack reverse --rounds 3"
    settings = "--set batch_size=8 --set engine=ray"
    done = subprocess.run(
        [*command, *options.split(), *settings.split(), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, *rounds, summary = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in rounds] == pytest.approx(curve(outcome), abs=0.003)
    # Replies trickle in here: a group may be decoded before a slow node, liar or not, was heard.
    lying = {int(number) for number, kinds in summary["offences"].items() if "lying" in kinds}
    assert lying
    assert lying <= outcome.scenario.liars
