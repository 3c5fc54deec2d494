"""`solon-fl` in a process of its own, with and without the packages that it needs."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.cli.command import solon_fl

# What a plain `pip install solon-fl` lacks: flwr itself brings typer and rich, and torch brings jinja2.
EXTRA = ("matplotlib", "jinja2", "PIL", "threadpoolctl")
START = "from solon_fl.cli import main; main()"


def run(code: str, *arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    blocking = f"import sys; sys.modules.update(dict.fromkeys({without}))\n"  # None: as if not installed
    return subprocess.run(
        [sys.executable, "-c", blocking + code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_without_the_extra_one_sentence_says_how_to_get_it() -> None:
    done = run(START, "plan", "--help", without=EXTRA)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the command line needs matplotlib, jinja2, PIL, threadpoolctl, which are not installed; "
        "run: pip install 'solon-fl[simulation]'\n"
    )
    assert done.stdout == ""


@pytest.mark.slow
def test_without_the_extra_nodes_servers_and_simulated_grids_work() -> None:
    code = """
import solon_fl.strategies, solon_fl.clients, solon_fl.baselines
from solon_fl.simulations import InProcessGrid, load_dataset, simulate
from solon_fl.simulations.attacks.mods import attack_mod
print(len(load_dataset("fashion-mnist-6k").test_labels))
"""
    done = run(code, without=EXTRA)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1000\n"


@pytest.mark.slow
def test_bad_settings_are_one_line_in_a_process_of_its_own() -> None:
    done = run(START, "compare", "--set", "threads=0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: threads must be from 1 to ")
    assert done.stderr.endswith("; got threads=0.\n")


def test_the_version_is_told() -> None:
    done = solon_fl("--version")
    assert done.exit_code == 0
    assert done.stdout.strip() == version("solon-fl")
