"""Time encoding and decoding against a copy, an average and the robust aggregators, in one run.

Absolute times depend on the machine and on its load. So the operations take turns, the fastest run of each counts, and
its ratio to a plain copy of the same shares is shown beside it. The result of every timed operation is checked.

    python -m benchmarks.speed                              everything, some 15 minutes and 12 GB
    python -m benchmarks.speed --dims 1e5,1e6 --codes 10,6,2 --kinds exact --seconds 1
    python -m benchmarks.speed --check benchmarks/baseline.json
"""

import argparse
import gc
import json
import logging
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from benchmarks.full_size import RandomGradients
from benchmarks.server_memory import status
from benchmarks.speed_cases import CASES, COPY, Case, Operation, locating, training
from solon_fl import SolonConfig
from solon_fl.baselines.garbage import quick_collections
from solon_fl.simulations import InProcessGrid, Scenario
from solon_fl.simulations.run._compat import become_server
from solon_fl.simulations.run.nodes import ImageClient, make_client_app
from solon_fl.simulations.run.strategies import STRATEGIES
from solon_fl.wire import to_array

CODES = "5,3,1 10,6,2 20,10,5"
DIMS = "1e5,1e6,1.1e7,1e8"
LIES = ("decode, s lie", "decode, s lie in one bit")
OURS = ("encode", "decode, nobody lies", *LIES, "decode, s missing", "a group's replies")
LOCATED = ((20, 40), (60, 20))  # k, s of groups of 100
SLACK = 1.5  # `--check` accepts ratios up to SLACK x the baseline's as noise
LARGEST_CHECKED = 2e7  # the largest d for `--check`
ATTEMPTS = 3  # attempts of `--check` if something seems too slow


@dataclass(frozen=True)
class Row:
    """One operation at one size: the seconds of its fastest run, and the number of runs."""

    r: int
    k: int
    s: int
    dim: int
    operation: str
    seconds: float
    runs: int
    code: str = "fourier"

    @property
    def group(self) -> tuple[str, int, int, int]:
        """The code, r, k and s."""
        return self.code, self.r, self.k, self.s


def measure(operations: dict[str, Operation], seconds: float, device: str) -> dict[str, tuple[float, int]]:
    """Run the operations in turns, each for `seconds` but at least once; return its fastest time and number of runs."""
    taken: dict[str, list[float]] = {name: [] for name in operations}
    while waiting := [name for name in operations if sum(taken[name]) < seconds]:
        for name in waiting:
            operations[name].prepare()
            synchronize(device)
            started = time.perf_counter()
            result = operations[name].run()
            synchronize(device)
            taken[name].append(time.perf_counter() - started)
            operations[name].check(result)
            del result
    return {name: (min(times), len(times)) for name, times in taken.items()}


def synchronize(device: str) -> None:
    """Wait until the GPU has finished."""
    if device != "cpu":
        torch.cuda.synchronize()


def measure_coding(kind: str, case: Case, seconds: float) -> list[Row]:
    """Return a row for each of Solon's operations and for each reference operation."""
    return _rows(kind, case, case.coding(), seconds)


def _rows(kind: str, case: Case, operations: dict[str, Operation], seconds: float) -> list[Row]:
    found = measure(operations, seconds, case.gradient.device.type)
    return [Row(case.r, case.k, case.s, case.dim, name, *best, kind) for name, best in found.items()]


def measure_case(kind: str, case: Case, seconds: float) -> list[Row]:
    """Return a row for every operation for which there is enough memory."""
    device = case.gradient.device.type
    result = measure_coding(kind, case, seconds)
    if device == "cpu" and 5 * 4 * case.r * case.dim < available_memory():  # Flower's aggregators hold several copies
        for name, operation in case.averaging():
            result += _rows(kind, case, {name: operation}, seconds)
            del operation
            gc.collect()
    return result


def available_memory() -> int:
    """Return the available memory in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines() if sys.platform == "linux" else []:
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return 8 * 2**30


def peak_memory_of_a_decode(case: Case) -> float:
    """Return the peak growth of the process, in MB (1e6 bytes), while it decodes with s lies. Linux only."""
    received = case.lying()
    case.decoder.decode(received, dim=case.dim)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the current memory
    before = status("VmRSS")
    decoded = case.decoder.decode(received, dim=case.dim)
    after = status("VmHWM")
    case.is_right(decoded, case.liars)
    return (after - before) / 1e6


def measure_rounds(rounds: int = 5) -> dict[str, dict[str, float]]:
    """Return the seconds of a round of 100 simulated nodes, in total and apart from computing gradients."""
    config = SolonConfig(num_nodes=100, byzantine=5, compression=10, group_size=20)
    scenario = Scenario(config=config, strategy="solon", attack="reverse", num_liars=5, model="cnn", rounds=rounds)
    images = ImageClient(scenario)
    model = images.build_model(Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    million = ArrayRecord({"weight": to_array(torch.zeros(1_000_000))})
    found = {}
    for name, client, arrays in (
        ("random gradients, d = 1e6", RandomGradients(scenario, 1_000_000), million),
        (f"{scenario.dataset}, cnn", images, ArrayRecord(model.state_dict())),
    ):
        inside: list[float] = []
        compute = client.mean_gradient

        def timed(*arguments: Any, compute: Any = compute, inside: list[float] = inside, **named: Any) -> Tensor:
            started = time.perf_counter()
            gradient: Tensor = compute(*arguments, **named)
            inside.append(time.perf_counter() - started)
            return gradient

        client.mean_gradient = timed  # type: ignore[method-assign]
        made = STRATEGIES["solon"].make(scenario, buffers=(), on_round=lambda _: None)
        grid = InProcessGrid(make_client_app(client), 100)
        with quick_collections():
            made.start(grid, arrays, num_rounds=1, timeout=60)  # fills caches
            inside.clear()
            started = time.perf_counter()
            made.start(grid, arrays, num_rounds=rounds, timeout=60)
            seconds = (time.perf_counter() - started) / rounds
        found[name] = {"seconds": seconds, "outside_gradients": seconds - sum(inside) / rounds}
    return found


def measure_others(seconds: float) -> dict[str, float]:
    """Return the seconds for locating lies in large groups, and for encoding and training ResNet-18."""
    operations = {f"locate {s} lies, r = 100, k = {k}, exact code": locating(100, k, s) for k, s in LOCATED}
    found = measure(operations, seconds, "cpu") | measure(training(), seconds, "cpu")
    return {name: best for name, (best, _) in found.items()}


def show(console: Console, rows: list[Row]) -> None:
    """Print tables of milliseconds, and of ratios to the copy, with a column per length of the gradient."""
    for code, r, k, s in dict.fromkeys(row.group for row in rows):
        group = [row for row in rows if row.group == (code, r, k, s)]
        dims = sorted({row.dim for row in group})
        title = f"{code} code, r = {r}, k = {k}, s = {s}: ms (and times a copy of the shares)"
        table = Table(title=title, title_justify="left")
        table.add_column("operation")
        for dim in dims:
            table.add_column(f"d = {dim:.2g}", justify="right", no_wrap=True)
        copies = {row.dim: row.seconds for row in group if row.operation == COPY}
        for name in dict.fromkeys(row.operation for row in group):
            cells = {
                row.dim: f"{1e3 * row.seconds:,.3g} ({row.seconds / copies[row.dim]:,.2g})"
                for row in group
                if row.operation == name
            }
            table.add_row(name, *(cells.get(dim, "-") for dim in dims))
        console.print(table)


def plot(rows: list[Row], path: Path) -> None:
    """Plot seconds against d for the largest group, and against r for a d common to all groups, log-log."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    if fourier := [row for row in rows if row.code == "fourier"]:
        rows = fourier
    largest = max(row.r for row in rows)
    measured = [
        {row.dim for row in rows if (row.r, row.operation) == key} for key in {(o.r, o.operation) for o in rows}
    ]
    dim = max(set.intersection(*measured), default=min(row.dim for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), sharey=True, layout="constrained")
    names = list(dict.fromkeys(row.operation for row in rows))
    for number, name in enumerate(names):
        style = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10], "linestyle": "-" if name in OURS else ":"}
        lengths = sorted((row.dim, row.seconds) for row in rows if (row.r, row.operation) == (largest, name))
        groups = sorted((row.r, row.seconds) for row in rows if (row.dim, row.operation) == (dim, name))
        for axis, points in zip(axes, (lengths, groups), strict=True):
            axis.loglog(*zip(*points, strict=True), label=name, **style) if points else None
    sizes = sorted({(row.r, row.k, row.s) for row in rows})
    axes[0].set(xlabel="d, length of the gradient", ylabel="seconds", title=f"a group of r = {largest}")
    axes[1].set(xlabel="r, nodes in the group", title=f"d = {dim:.2g}")
    axes[1].set_xticks([r for r, _, _ in sizes], [f"r={r}\nk={k}\ns={s}" for r, k, s in sizes], minor=False)
    axes[1].minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return the ratios that `--check` compares: Solon's operations in units of the fastest copy."""
    copies = {(row.group, row.dim): row.seconds for row in rows if row.operation == COPY}
    return {
        f"{row.code}: {row.operation}, r = {row.r}, d = {row.dim:.2g}": row.seconds / copies[row.group, row.dim]
        for row in rows
        if row.operation in OURS
    }


def check(console: Console, baseline: Path, seconds: float) -> bool:
    """Measure the baseline's sizes again and print which operations became slower, in units of a copy."""
    before = [Row(**row) for row in json.loads(baseline.read_text())["rows"] if row["dim"] <= LARGEST_CHECKED]
    expected = ratios(before)
    sizes = dict.fromkeys((*row.group, row.dim) for row in before)
    found: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        for kind, r, k, s, dim in sizes:
            rows = measure_coding(kind, CASES[kind](r, k, s, dim, "cpu"), seconds)
            for name, ratio in ratios(rows).items():
                found[name] = min(ratio, found.get(name, float("inf")))
        slow = [name for name, ratio in found.items() if ratio > SLACK * expected[name]]
        if not slow:
            break
        console.print(f"[dim]attempt {attempt + 1} of {ATTEMPTS}: {len(slow)} operations seem slower[/]")
    table = Table(title="times a copy of the shares", title_justify="left")
    for heading in ("operation", "baseline", "now", ""):
        table.add_column(heading, justify="left" if heading in ("operation", "") else "right")
    for name, ratio in found.items():
        table.add_row(name, f"{expected[name]:.2f}", f"{ratio:.2f}", "[red]slower[/]" if name in slow else "")
    console.print(table)
    return not slow


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", default=CODES, help='"r,k,s" of each group (default: "%(default)s")')
    parser.add_argument("--kinds", default=",".join(CASES), help="codes (default: %(default)s)")
    parser.add_argument("--dims", default=DIMS, help="lengths of the gradient, d (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per operation (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument(
        "--device", default="cpu", help='torch device; others than "cpu" time only coding (default: %(default)s)'
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), help="folder for the JSON file and the plot"
    )
    parser.add_argument("--check", type=Path, help="compare with this JSON file instead; exit status 1 if slower")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.CRITICAL)
    become_server()  # required by Flower to create messages
    console = Console(width=110, highlight=False)
    if arguments.check:
        return 0 if check(console, arguments.check, arguments.seconds) else 1
    device = arguments.device
    sizes = [
        (*(int(number) for number in code.split(",")), int(float(dim)), kind)
        for code in arguments.codes.split()
        for dim in arguments.dims.split(",")
        for kind in arguments.kinds.split(",")
    ]
    rows: list[Row] = []
    peaks: dict[str, float] = {}
    left_out = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for r, k, s, dim, kind in progress.track(sizes, description="measuring"):
            if 4 * 4 * dim * (1 + r / k) > available_memory():
                left_out.append(f"{kind} code, r = {r}, d = {dim:.2g}")
                continue
            case = CASES[kind](r, k, s, dim, device)
            if device == "cpu" and sys.platform == "linux" and dim >= 1e7:
                peaks[f"{kind} code, r = {r}, d = {dim:.2g}"] = peak_memory_of_a_decode(case)
            rows += measure_case(kind, case, arguments.seconds)
            del case
            gc.collect()
    rounds = measure_rounds() if device == "cpu" else {}
    others = measure_others(arguments.seconds) if device == "cpu" else {}
    name = torch.cuda.get_device_name() if device != "cpu" else f"{cpu_name()}, {arguments.threads} thread(s)"
    console.print(f"{name}; torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}\n")
    show(console, rows)
    for size, peak in peaks.items():
        output = 4 * float(size.split("= ")[-1]) / 1e6
        console.print(f"memory of a decode with s lies, {size}: {peak:,.0f} MB, of which {output:,.0f} are the result")
    for what, seconds in rounds.items():
        share = seconds["outside_gradients"] / seconds["seconds"]
        console.print(
            f"a round of 100 simulated nodes, {what}: {seconds['seconds']:.3f} s, "
            f"of which {seconds['outside_gradients']:.3f} s ({share:.0%}) are not spent on gradients"
        )
    for what, best in others.items():
        console.print(f"{what}: {1e3 * best:,.3g} ms")
    if left_out:
        console.print(f"[yellow]left out for lack of memory: {'; '.join(left_out)}[/]")
    arguments.output.mkdir(parents=True, exist_ok=True)
    machine = {"name": name, "threads": arguments.threads, "seed": 0, "torch": torch.__version__}
    machine |= {"numpy": np.__version__, "python": platform.python_version(), "platform": platform.platform()}
    result = {"machine": machine, "rows": [asdict(row) for row in rows], "peak_mb": peaks, "rounds": rounds}
    result["others"] = others
    (arguments.output / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, arguments.output / "speed.png")
    console.print(f"\nwritten: {arguments.output / 'speed.json'}, {arguments.output / 'speed.png'}")
    return 0


def cpu_name() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
