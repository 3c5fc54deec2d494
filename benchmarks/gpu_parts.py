"""The parts of benchmarks/gpu_check.py. Each checks one thing on a device, and yields its findings or raises."""

import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import decoding_accuracy, framing
from benchmarks.on_device import VARIABLE, on_device
from solon_fl import Code, Decoder, DecodeStatus, ExactCode, ExactDecoder, FourierCode, RealDecoder, SolonConfig
from solon_fl.clients import Batch, SolonClientMixin
from solon_fl.clients.determinism import strictly_deterministic
from solon_fl.coding.digests import share_digests
from solon_fl.errors import GroupFailedError
from solon_fl.simulations import InProcessGrid, RoundRecord, build_model, simulate
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.simulations.compare import load_comparison
from solon_fl.simulations.run.simulation import Stopped
from solon_fl.strategies import SolonStrategy, buffer_names, calibrate, model_sha256
from solon_fl.wire import to_array

__all__ = ["PARTS", "Asked", "Findings", "WrongError"]

Findings = dict[str, object]
ROOT = Path(__file__).parents[1]
R, K, S = 20, 10, 5
LIARS = (1, 4, 7, 12, 19)
RIGHT = (DecodeStatus.CLEAN, DecodeStatus.CORRECTED)
NOT_IN_COPIES = (  # these make assertions about memory that fail where on_device copies
    "tests/coding/exact/test_exact_code.py::test_shares_of_the_chunks_are_views",
    "tests/coding/exact/test_exact_decoder.py::test_where_shares_disagreed_is_looked_at_first",
)
CPU = torch.device("cpu")
CONTEXT = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


class WrongError(Exception):
    """The device computed a wrong result."""


@dataclass(frozen=True)
class Asked:
    """The settings of a check.

    Attributes
    ----------
    device : device
        The device to compute on.
    small : bool
        Whether to do as little as possible, just to test the program.
    ends : float
        The deadline for all parts, in terms of `time.monotonic`.
    data_dir : Path, optional
        The CIFAR-10 folder.
    """

    device: torch.device
    small: bool
    ends: float
    data_dir: Path | None = None

    @property
    def left(self) -> float:
        """The seconds left."""
        return self.ends - time.monotonic()

    @property
    def network(self) -> str:
        """The name of the network to train."""
        return "cnn" if self.small else "resnet18"

    @property
    def dims(self) -> tuple[int, ...]:
        """The lengths of gradients to test."""
        return (20_000,) if self.small else (1_000_000, 11_000_000, 100_000_000)

    def milliseconds(self, work: Callable[[], object], times: int = 7) -> float:
        """Return the milliseconds of the fastest of several runs, after a warm-up."""
        taken = []
        for _ in range(1 + (1 if self.small else times)):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - started)
        return round(1e3 * min(taken[1:]), 4)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def encoding(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Time encoding against a copy of the gradient on the device and a transfer of the share to the host."""
    codes: dict[str, Code] = {
        "fourier": FourierCode(group_size=R, compression=K),
        "exact": ExactCode(group_size=R, compression=K),
    }
    for dim in asked.dims:
        gradient = torch.randn(dim, device=asked.device)
        copied = torch.empty_like(gradient)
        copy = asked.milliseconds(partial(copied.copy_, gradient))
        for name, code in codes.items():
            share = code.encode(gradient, R - 1)
            host = torch.empty(share.shape, pin_memory=asked.device.type == "cuda")
            encode = asked.milliseconds(partial(code.encode, gradient, R - 1))
            error = _distance(share.cpu(), code.encode(gradient.cpu(), R - 1))
            if error > (1e-6 if name == "fourier" else 0):
                raise WrongError(f"a share differs by {error:.1e} from the CPU's; d={dim}, code {name}")
            yield (
                f"{name}, d={dim}",
                {
                    "encode, ms": encode,
                    "copy of d, ms": copy,
                    "GB/s read": round(4 * dim / encode / 1e6, 1),
                    "share to host, ms": asked.milliseconds(partial(host.copy_, share)),
                    "from the CPU's": error,
                },
            )


def decoding(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Decode on the device, without liars and with five."""
    exact, fourier = ExactCode(group_size=R, compression=K), FourierCode(group_size=R, compression=K)
    decoders: list[Decoder] = [RealDecoder(fourier, byzantine=S), ExactDecoder(exact, byzantine=S)]
    for dim in asked.dims[:2]:
        gradient = torch.randn(dim, device=asked.device)
        for decoder in decoders:
            shares = {slot: decoder.code.encode(gradient, slot).clone() for slot in range(R)}
            clean = asked.milliseconds(partial(decoder.decode, shares, dim=dim), 3)
            for slot in LIARS:
                shares[slot] = -3 * shares[slot]
            decoded = decoder.decode(shares, dim=dim)
            named = decoded.corrupt_slots or decoded.different_slots
            if decoded.gradient is None or named != LIARS:
                raise WrongError(f"{decoder!r} returns {decoded.status} and names {named} instead of {LIARS}; d={dim}")
            error = float((decoded.gradient - gradient).norm() / gradient.norm())
            if error > (1e-5 if decoder.code is fourier else 0):
                raise WrongError(f"{decoder!r} has a relative error of {error:.1e}; d={dim}")
            yield (
                f"{type(decoder).__name__}, d={dim}",
                {
                    "nobody lies, ms": clean,
                    "5 lie, ms": asked.milliseconds(partial(decoder.decode, shares, dim=dim), 3),
                    "relative error": error,
                },
            )


def batches(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Time one batch against r batches, and against one batch of r times the size: a node's cost of redundancy."""
    model = build_model(asked.network, (3, 32, 32), 10, 0).to(asked.device)
    size, number = (2, 3) if asked.small else (32, R)
    inputs = torch.randn(number * size, 3, 32, 32, device=asked.device)
    labels = torch.randint(0, 10, (number * size,), device=asked.device)

    def steps(batch_size: int, count: int) -> None:
        model.zero_grad()
        for start in range(0, batch_size * count, batch_size):
            chosen = slice(start, start + batch_size)
            cross_entropy(model(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]  # torch's

    one = asked.milliseconds(partial(steps, size, 1))
    many = asked.milliseconds(partial(steps, size, number), 3)
    yield (
        asked.network,
        {
            f"one batch of {size}, ms": one,
            f"{number} batches, ms": many,
            f"{number} batches against one": round(many / one, 2),
            f"one of {number * size}, ms": asked.milliseconds(partial(steps, size * number, 1), 3),
        },
    )


class Classifier(SolonClientMixin):
    """Learns random labels of random images. The nodes in `on_cpu` compute on the CPU."""

    def __init__(self, asked: Asked, on_cpu: range = range(0)) -> None:
        self.asked, self.on_cpu = asked, on_cpu
        self.where = asked.device

    def build_model(self, context: Context) -> nn.Module:
        return build_model(self.asked.network, (3, 32, 32), 10, 0)

    def devices(self) -> list[torch.device]:
        return [self.where]

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        generator, size = batch.generator(), 2 if self.asked.small else 32
        inputs = torch.randn(size, 3, 32, 32, generator=generator)
        labels = torch.randint(0, 10, (size,), generator=generator)
        return cross_entropy(model(inputs.to(self.device())), labels.to(self.device()))

    def train(self, message: Message, context: Context) -> Message:
        self.where = CPU if context.node_id in self.on_cpu else self.asked.device
        return super().train(message, context)


def bits(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Check that two runs of one gradient, and training with and without liars, produce the same bits."""
    model = build_model(asked.network, (3, 32, 32), 10, 0)
    names, code = buffer_names(model), FourierCode(group_size=R, compression=K)
    found = []
    for where in (asked.device, asked.device, CPU):
        client = Classifier(asked)
        client.where = where
        with strictly_deterministic(True):
            found.append(client.mean_gradient(_record(model), [Batch(0, 1, n) for n in range(2)], names, CONTEXT))
    one, other, on_cpu = found
    digests = [share_digests(code, gradient, b"key") for gradient in (one, other)]
    if not torch.equal(one, other) or digests[0] != digests[1]:
        raise WrongError("two runs of one gradient differ in their bits or digests")
    yield "one gradient, twice", {"bits": "equal", "digests": "equal", "from the CPU's": _distance(one.cpu(), on_cpu)}

    digests_of_runs = {}
    liars, nodes, k = ((1,), 3, 1) if asked.small else ((1, 4), 9, 5)
    config = SolonConfig(num_nodes=nodes, byzantine=len(liars), compression=k, batches_per_group=2, code="exact")
    for lying in ((), liars):
        strategy = SolonStrategy(config, partial(torch.optim.SGD, lr=0.05), buffers=names)
        app = Classifier(asked).client_app([attack_mod(Reverse(), set(lying))])
        started = time.monotonic()
        result = strategy.start(InProcessGrid(app, nodes), _record(model), num_rounds=2, timeout=200)
        digests_of_runs[model_sha256(result.arrays)] = round(time.monotonic() - started, 2)
    if len(digests_of_runs) != 1:
        raise WrongError(f"{len(liars)} liars of {nodes} nodes change bits of the model with code='exact'")
    ((digest, seconds),) = digests_of_runs.items()
    yield f"two rounds, {len(liars)} of {nodes} lie", {"model": f"{digest[:16]}, as without them", "seconds": seconds}


def mixed(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Calibrate nodes, some of which compute on the device and some on the CPU."""
    model = build_model(asked.network, (3, 32, 32), 10, 0)
    config = SolonConfig(num_nodes=6, byzantine=1, compression=4, batches_per_group=2)
    app = Classifier(asked, on_cpu=range(1, 4)).client_app()
    nodes = "3 nodes on the device, 3 on the CPU"
    try:
        found = calibrate(InProcessGrid(app, 6), _record(model), config, buffers=buffer_names(model), liars=0)
    except GroupFailedError as error:  # a fact about the network, not a fault
        yield nodes, {"one group": f"impossible: {error}"}
    else:
        figures: Findings = {"noise": found.noise, "rtol": found.rtol, "certificate": found.certificate}
        yield nodes, {**figures, "identical": found.identical}


def trials(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Run the batteries of benchmarks/decoding_accuracy.py and framing.py with all codes on the device."""
    seconds = 0.3 if asked.small else min(20.0, asked.left / 6)
    batteries: dict[str, tuple[list[object], Callable[..., None], Callable[[], object]]] = {
        "decoding": (
            list(decoding_accuracy.guaranteed_cells(1)),
            decoding_accuracy.run_trial,
            decoding_accuracy.Tally,
        ),
        "decoding, exact": (
            list(decoding_accuracy.exact_cells(1)),
            decoding_accuracy.run_exact_trial,
            decoding_accuracy.Tally,
        ),
        "framing": (list(framing.all_cells(1)), framing.run_trial, framing.Tally),
    }
    for name, (cells, run_trial, new_tally) in batteries.items():
        tally, ends, number = new_tally(), time.monotonic() + seconds, 0
        with on_device(asked.device) as moved:
            while time.monotonic() < ends:
                run_trial(cells[number % len(cells)], number, 0, tally)
                number += 1
        wrong = {
            what: sum(getattr(tally, what).values())
            for what in ("outside", "failed", "blamed", "named", "wrong_bits")
            if hasattr(tally, what)
        }
        if any(wrong.values()):
            raise WrongError(f"{name}: errors in {number} trials: {wrong}")
        yield name, {"trials": number, "decodes on the device": moved["decode"], **wrong}


def tests(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Run the tests of coding with all codes on the device, and those of clients, which use it by themselves."""
    chosen = ["tests/coding/exact/test_exact_code.py"] if asked.small else ["tests/coding", "tests/clients"]
    processes = [] if asked.small else ["-n", str(min(8, os.cpu_count() or 1))]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *processes]
    command += [
        "-p",
        "benchmarks.on_device",
        "-m",
        "not slow",
        *(f"--deselect={test}" for test in NOT_IN_COPIES),
        *chosen,
    ]
    environment = {**os.environ, VARIABLE: str(asked.device)}
    limit = max(10.0, min(180.0, asked.left - 30))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=limit
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.M)
    passed, moved = re.search(r"(\d+) passed", done.stdout), re.search(r"^on .*decodes$", done.stdout, re.M)
    if done.returncode or not (passed and moved):
        raise WrongError(f"pytest exits with {done.returncode}: {failed or (done.stdout + done.stderr)[-2000:]}")
    yield " and ".join(chosen), {"passed": int(passed[1]), "calls": moved[0]}


def paper(asked: Asked) -> Iterator[tuple[str, Findings]]:
    """Train Solon as in the comparison paper-cifar10, with liars, for the remaining time."""
    with _cifar10(asked.data_dir) as folder:
        scenario = load_comparison("paper-cifar10", {"scenario": {"data_dir": str(folder)}}).scenario
        scenario = replace(scenario, strategy="solon", attack="reverse")
        if asked.small:
            config = replace(scenario.config, num_nodes=6, group_size=3, byzantine=1, compression=1)
            scenario = replace(scenario, model="cnn", config=config, num_liars=2, rounds=2)
        records: list[RoundRecord] = []
        ends: list[float] = []

        def note(record: RoundRecord) -> None:
            records.append(record)
            ends.append(time.monotonic())
            if asked.left < 5:
                raise KeyboardInterrupt  # ends the run cleanly

        with suppress(Stopped):
            simulate(scenario, note)
        if len(ends) < 2:
            raise WrongError("no round was finished in time; increase --seconds")
        reports = [record.report for record in records if record.report]
        failed = [group for report in reports for group in report.groups if group.status not in RIGHT]
        if failed:
            raise WrongError(f"{len(failed)} groups failed; the first is {failed[0]}")
        yield (
            "CIFAR-10" if asked.data_dir else "images of noise in CIFAR-10's place",
            {
                "rounds": len(ends) - 1,
                "s a round": round((ends[-1] - ends[0]) / (len(ends) - 1), 3),
                "accuracy": records[-1].accuracy,
            },
        )


@contextmanager
def _cifar10(data_dir: Path | None) -> Iterator[Path]:
    """Yield the CIFAR-10 folder, or one with images of noise in the same format, whose labels can't be learnt."""
    if data_dir is not None:
        yield data_dir
        return
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            images = rng.integers(0, 256, (200, 3 * 32 * 32), dtype=np.uint8)
            batch = {"data": images, "labels": rng.integers(0, 10, 200).tolist()}
            (Path(folder) / name).write_bytes(pickle.dumps(batch, protocol=2))
        yield Path(folder)


def _record(model: nn.Module) -> ArrayRecord:
    return ArrayRecord({name: to_array(value) for name, value in model.state_dict().items()})


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the distance between two vectors relative to the norm of the second; 0 if all bits are equal."""
    if torch.equal(one.view(torch.int32), other.view(torch.int32)):
        return 0.0
    return float((one.double() - other.double()).norm() / other.double().norm()) or float("nan")


PARTS: dict[str, Callable[[Asked], Iterator[tuple[str, Findings]]]] = {
    "encode": encoding,
    "decode": decoding,
    "one batch and many": batches,
    "bits": bits,
    "mixed nodes": mixed,
    "batteries": trials,
    "tests": tests,
    "paper-cifar10": paper,
}
