import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Outcome
from tests.simulations.run.small import curve, run


def test_ray_that_is_not_installed_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"solon-fl\[ray\]"):
        run(engine="ray")


def run_on_ray(options: str, settings: str, folder: Path) -> Outcome:
    """Run a simulation in its own process, as Ray starts further processes and issues warnings."""
    command = [sys.executable, "-c", "from solon_fl.cli import main; main()", "simulate", *options.split()]
    for setting in ("engine=ray", *settings.split()):
        command += ["--set", setting]
    done = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Outcome.load(folder / "rounds.jsonl")


@pytest.mark.slow
def test_flowers_own_engine_gives_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    """With patches, liars, and a referee in the server's process."""
    pytest.importorskip("ray")
    config = SolonConfig(num_nodes=5, byzantine=2, compression=3, code="exact", referee=True, downlink="delta")
    outcome = run(config=config, rounds=3)
    options = "--nodes 5 --byzantine 2 --compression 3 --referee --model logistic --attack reverse --rounds 3"
    on_ray = run_on_ray(options, "batch_size=8 code=exact downlink=delta", tmp_path)
    assert on_ray.model_sha256 == outcome.model_sha256, "the same model as in an honest run in this process"
    assert curve(on_ray) == curve(outcome)
    assert on_ray.convicted == on_ray.liars
    assert on_ray.referee_computations == 1
