"""Measure the cost of patches in bytes, accuracy and time, against the float32 model and the rejected codecs.

The networks are trained in plain torch, in the way that a server and its nodes do it. The server's optimizer steps a
master copy of the model. A codec sends patches that bring the nodes' copy close to the master. Gradients, of batches of
160, are computed at the nodes' copy. Buffers are sent in full. Every codec sees the same batches and initial weights.
The data set is fashion-mnist-6k, or synthetic-reviews for textcnn.

columns of the training tables:
  bytes       bytes of all rounds, as a fraction of float32's
  accuracy    final test accuracy of the master, in percent: the mean over the seeds, and half their range
  gained      that mean minus float32's, in percentage points
  off         the largest difference between the mean curve (one point every ten rounds) and float32's, in points
  loss        the training loss in the last third of the rounds, relative to float32's, in percent: mean and standard
              error over the seeds; it is less noisy than the accuracy

columns of the table of times, for ResNet-18's 11 million parameters, on one thread:
  ms          CPU time of the fastest run
  copies      ratio to a plain copy of the same number of float32
  batches     ratio to a forward and backward pass of 32 images of 3 x 32 x 32

examples:
  python -m benchmarks.downlink --hurry              in a minute: 30 rounds, one seed, few settings
  python -m benchmarks.downlink                      some 15 minutes on one core
  python -m benchmarks.downlink --only times         only the times
"""

import argparse
import hashlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor, nn
from torch.nn import functional

from solon_fl.downlink.codec import apply_patch, make_patch
from solon_fl.simulations.datasets import Dataset, build_model, load_dataset

Codec = Callable[[list[Tensor], list[Tensor]], int]  # changes the copy and returns the number of bytes
BATCH_SIZE = 5 * 32
EVERY = 10  # rounds between two points of a curve
SEEDS, TRIED_SEEDS = 3, 6
OPTIMIZERS = ("SGD 0.05", "Adam 1e-3", "Adam 1e-4")
MODELS = ("cnn+bn", "mlp", "textcnn", "cnn")
TRIED = (("small mlp", "SGD 0.05"), ("small mlp+bn", "Adam 1e-3"))


def float32(target: list[Tensor], copy: list[Tensor]) -> int:
    for wanted, held in zip(target, copy, strict=True):
        held.copy_(wanted)
    return 4 * sum(held.numel() for held in copy)


def patches(target: list[Tensor], copy: list[Tensor]) -> int:
    patch = make_patch(target, copy)
    if patch is None:
        raise ArithmeticError("the training diverged; use a lower learning rate.")
    return len(patch)


def blocks(largest: int, block: int = 256, spread: float = 0.0) -> Codec:
    """Return a codec of symbols up to `largest`; each block's float32 step follows from its maximum or `spread` rms."""

    def code(target: list[Tensor], copy: list[Tensor]) -> int:
        all_symbols, all_steps = [], []
        for wanted, held in zip(target, copy, strict=True):
            size = held.numel()
            differences = torch.zeros(-(-size // block) * block)
            differences[:size] = (wanted - held).view(-1)
            rows = differences.view(-1, block)
            scale = spread * rows.square().mean(1).sqrt() if spread else rows.abs().amax(1)
            steps = (scale / largest).clamp_min(1e-38)[:, None]
            symbols = (rows / steps).round_().clamp_(-largest, largest)
            held.view(-1).add_((symbols * steps).view(-1)[:size])
            all_symbols.append(symbols.to(torch.int8).view(-1)[: size + size % 2].add_(8))
            all_steps.append(steps.view(-1))
        pairs = torch.cat(all_symbols).view(-1, 2)
        packed = pairs[:, 0] | pairs[:, 1] << 4
        return compressed(packed.numpy()) + compressed(torch.cat(all_steps).numpy())

    return code


def bf16_xor(target: list[Tensor], copy: list[Tensor]) -> int:
    """Send the changed bits of the bfloat16 model, high bytes and low bytes separately."""
    changed = []
    for wanted, held in zip(target, copy, strict=True):
        rounded = wanted.bfloat16()
        changed.append((rounded.view(torch.int16) ^ held.bfloat16().view(torch.int16)).view(-1))
        held.copy_(rounded)
    return compressed(torch.cat(changed).view(torch.uint8).view(-1, 2).T.contiguous().numpy())


def top(fraction: float) -> Codec:
    """Return a codec that sends the largest differences, in float32, and their positions, in int32."""

    def code(target: list[Tensor], copy: list[Tensor]) -> int:
        differences = torch.cat([(wanted - held).view(-1) for wanted, held in zip(target, copy, strict=True)])
        places = differences.abs().topk(max(1, int(fraction * differences.numel()))).indices
        change = torch.zeros_like(differences)
        change[places] = differences[places]
        for held, part in zip(copy, torch.split(change, [held.numel() for held in copy]), strict=True):
            held.add_(part.view_as(held))
        return 8 * len(places)

    return code


def compressed(values: npt.NDArray[Any]) -> int:
    settings = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=10)
    return len(zstandard.ZstdCompressor(compression_params=settings).compress(values.tobytes()))


OURS: dict[str, Codec] = {"float32": float32, "patches": patches}
ALL: dict[str, Codec] = OURS | {
    "blocks of 256, up to 7": blocks(7),
    "blocks of 256, up to 3": blocks(3),
    "blocks of 256, up to 2": blocks(2),
    "blocks of 256, up to 1": blocks(1),
    "blocks of 64, up to 5": blocks(5, block=64),
    "blocks of 1024, up to 5": blocks(5, block=1024),
    "blocks of 256, steps of rms / 2": blocks(7, spread=3.5),
    "blocks of 256, steps of rms": blocks(7, spread=7.0),
    "bfloat16, XOR": bf16_xor,
    "largest 1 %": top(0.01),
}


def network(name: str, dataset: Dataset, seed: int) -> nn.Module:
    """Return a network of the package, or one of three further ones."""
    torch.manual_seed(seed)
    classes = dataset.num_classes
    if name == "cnn+bn":
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, classes))
    if name.startswith("small mlp"):
        layers = [nn.AvgPool2d(2), nn.Flatten()]
        for before, after in ((196, 96), (96, 48)):
            layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if "bn" in name else []), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(48, classes))
    return build_model(name, dataset.input_shape, classes, seed)


def make_optimizer(name: str, master: list[Tensor]) -> torch.optim.Optimizer:
    kind, rate = name.split()
    if kind == "SGD":
        return torch.optim.SGD(master, lr=float(rate), momentum=0.9)
    return torch.optim.Adam(master, lr=float(rate))


@dataclass(frozen=True)
class Trained:
    """The bytes as a fraction of float32's, the accuracy at every tenth round, and the mean loss of the last third."""

    share: float
    curve: list[float]
    loss: float


def train(model_name: str, optimizer_name: str, codec: Codec, seed: int, rounds: int) -> Trained:
    dataset = load_dataset("synthetic-reviews" if model_name == "textcnn" else "fashion-mnist-6k")
    model = network(model_name, dataset, seed)
    copy = [value.detach() for value in model.parameters()]
    master = [value.clone() for value in copy]
    optimizer = make_optimizer(optimizer_name, master)
    generator = torch.Generator().manual_seed(seed)
    sent, curve, losses = 0, [], []
    for number in range(1, rounds + 1):
        chosen = torch.randint(len(dataset.train_labels), (BATCH_SIZE,), generator=generator)
        loss = functional.cross_entropy(model(dataset.train_inputs[chosen]), dataset.train_labels[chosen])
        for value, gradient in zip(master, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            value.grad = gradient
        optimizer.step()
        sent += codec(master, copy)
        losses.append(loss.item())
        if number % EVERY == 0:
            curve.append(accuracy(model, master, dataset))
    share = sent / (4 * rounds * sum(value.numel() for value in copy))
    return Trained(share, curve, statistics.fmean(losses[-(rounds // 3) :]))


@torch.no_grad()
def accuracy(model: nn.Module, parameters: list[Tensor], dataset: Dataset) -> float:
    """Return the percentage of the test set that the model classifies correctly with these parameters."""
    named = dict(zip((name for name, _ in model.named_parameters()), parameters, strict=True))
    model.eval()
    logits = torch.func.functional_call(model, named, (dataset.test_inputs,))
    model.train()
    return 100 * float((logits.argmax(1) == dataset.test_labels).double().mean())


def cells(runs: list[Trained], base: list[Trained]) -> list[str]:
    """Return a row's numbers; `base` holds float32's runs with the same seeds."""
    last = [run.curve[-1] for run in runs]
    curves, base_curves = (np.mean([run.curve for run in some], axis=0) for some in (runs, base))
    off = float(abs(curves - base_curves).max())
    changes = [100 * (run.loss / other.loss - 1) for run, other in zip(runs, base, strict=True)]
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan
    return [
        f"{statistics.fmean(run.share for run in runs):.3f}",
        f"{statistics.fmean(last):.1f} +- {(max(last) - min(last)) / 2:.1f}",
        f"{curves[-1] - base_curves[-1]:+.2f}",
        f"{off:.1f}",
        f"{statistics.fmean(changes):+.2f} +- {error:.2f}",
    ]


def training(settings: list[tuple[str, str]], codecs: dict[str, Codec], seeds: int, rounds: int) -> Iterator[list[str]]:
    """Yield the rows of a training table."""
    yield ["network", "optimizer", "codec", "bytes", "accuracy", "gained", "off", "loss"]
    for model, optimizer in settings:
        base: list[Trained] = []
        for name, codec in codecs.items():
            runs = [train(model, optimizer, codec, seed, rounds) for seed in range(seeds)]
            base = base or runs
            yield [model, optimizer, name, *cells(runs, base)]


def times(repeats: int) -> Iterator[list[str]]:
    """Yield the rows of the table of times: the steps of server and node for a patch of ResNet-18, which is checked."""
    model = build_model("resnet18", (3, 32, 32), 10, seed=0)
    start = [value.detach() for value in model.parameters()]
    generator = torch.Generator().manual_seed(0)
    # Differences of many sizes, because normally distributed ones would be the easiest for any codec.
    target = [value + 0.01 * torch.randn(value.shape, generator=generator) ** 3 for value in start]
    images, labels = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    server, node = ([value.clone() for value in start] for _ in range(2))
    whole = torch.cat([value.view(-1) for value in start])
    patch = b""

    def encode() -> None:
        nonlocal patch
        made = make_patch(target, server)
        assert made is not None
        patch = made

    def batch() -> None:
        torch.autograd.grad(functional.cross_entropy(model(images), labels), list(model.parameters()))

    bits, room = whole.numpy().view(np.uint8).data, torch.empty_like(whole)
    operations: dict[str, Callable[[], object]] = {
        "a copy": lambda: room.copy_(whole),
        "a batch of 32 images": batch,
        "server: make a patch": encode,
        "node: apply it": lambda: apply_patch(patch, node),
        "SHA-256 of the copy": lambda: hashlib.sha256(bits).digest(),
        "BLAKE2b of the copy": lambda: hashlib.blake2b(bits).digest(),
    }
    taken: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(repeats):
        for values in (server, node):
            float32(start, values)
        for name, operation in operations.items():
            started = time.process_time()
            operation()
            taken[name].append(1e3 * (time.process_time() - started))
        assert all(torch.equal(one, other) for one, other in zip(server, node, strict=True))
    best = {name: min(times) for name, times in taken.items()}
    copy, batched = list(best.values())[:2]
    yield ["operation", "ms", "copies", "batches"]
    for name, ms in best.items():
        yield [name, f"{ms:.0f}", f"{ms / copy:.1f}", f"{ms / batched:.3f}"]


def show(rows: Iterable[list[str]]) -> None:
    """Print a table, each row as soon as it is available."""
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |", flush=True)
        if number == 0:
            print("|" + " --- |" * len(row))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hurry", action="store_true", help="one seed, 30 rounds, few settings; not for publication")
    parser.add_argument("--only", choices=["training", "tried", "times"], help="print only one of the three tables")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of training; default 100")
    arguments = parser.parse_args()
    if arguments.rounds < EVERY:
        parser.error(f"--rounds must be at least {EVERY}; got {arguments.rounds}")
    torch.set_num_threads(1)
    settings, tried = [(model, name) for model in MODELS for name in OPTIMIZERS], list(TRIED)
    rounds, seeds, tried_seeds, repeats = arguments.rounds, SEEDS, TRIED_SEEDS, 10
    if arguments.hurry:
        settings, tried, rounds, seeds, tried_seeds, repeats = settings[:1], tried[:1], 30, 1, 1, 2
    if arguments.only in (None, "training"):
        show(training(settings, OURS, seeds, rounds))
    if arguments.only in (None, "tried"):
        show(training(tried, ALL, tried_seeds, rounds))
    if arguments.only in (None, "times"):
        show(times(repeats))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
