"""Check and time the package on a GPU, in under six minutes.

There are eight independent parts. If one fails, it prints the reason, the others go on, and the exit status is 1:
  encode, decode       times against a copy and a transfer to the host; compares the shares with the CPU's
  one batch and many   time of r batches of ResNet-18 against one
  bits                 one gradient computed twice; a run with liars and a run without
  mixed nodes          the float noise between nodes on the device and nodes on the CPU
  batteries            trials of decoding_accuracy.py and framing.py, with all codes on the device
  tests                tests/coding and tests/clients on the device
  paper-cifar10        rounds of this comparison, for the remaining time

    python -m benchmarks.gpu_check                            one CUDA GPU; writes gpu-check.json
    python -m benchmarks.gpu_check --data-dir cifar-10-batches-py
    python -m benchmarks.gpu_check --device cpu --small       test the program itself without a GPU
"""

import argparse
import json
import platform
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_parts import PARTS, Asked, Findings

SHORTEST = 5.0  # seconds; with less time left, no part is started


def name_of(device: torch.device) -> str:
    """Return the human-readable name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def run_part(name: str, asked: Asked, console: Console) -> dict[str, Findings] | str:
    """Run a part and print its findings; return them, or the reason for its failure."""
    if asked.left < SHORTEST:
        return "left out: time is up"
    started, found = time.monotonic(), dict[str, Findings]()
    table = Table(title=name, title_justify="left", show_header=False)
    error = ""
    try:
        with warnings.catch_warnings(action="ignore"):
            for what, figures in PARTS[name](asked):
                found[what] = figures
                for row, (figure, value) in enumerate(figures.items()):
                    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
                    table.add_row("" if row else what, figure, shown)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
        console.print(traceback.format_exc(limit=-3), markup=False, style="red")
    console.print(table)
    console.print(f"{time.monotonic() - started:.1f} s{': FAILED' if error else ''}\n", markup=False)
    return error or found


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="torch device; default cuda")
    parser.add_argument("--seconds", type=float, default=340, help="time limit for all parts; default 340")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10 folder; default: images of noise")
    parser.add_argument(
        "--output", type=Path, default=Path("gpu-check.json"), help="results as JSON; default gpu-check.json"
    )
    parser.add_argument("--small", action="store_true", help="do as little as possible")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"no GPU here: torch {torch.__version__} finds no CUDA device; nothing was checked.")
        return 0
    asked = Asked(device, chosen.small, time.monotonic() + chosen.seconds, chosen.data_dir)
    about = {
        "device": name_of(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "small": chosen.small,
    }
    console = Console()
    console.print(about)
    found = {name: run_part(name, asked, console) for name in PARTS}
    chosen.output.write_text(json.dumps({**about, "parts": found}, indent=1, default=str) + "\n")
    failed = [name for name, findings in found.items() if isinstance(findings, str)]
    console.print(f"{about['device']}: {len(PARTS) - len(failed)} of {len(PARTS)} parts passed; {chosen.output}")
    for name in failed:
        console.print(f"{name}: {found[name]}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
