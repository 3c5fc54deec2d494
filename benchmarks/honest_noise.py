"""Measure how far apart honest shares are, and so the lower limit of rtol, with real gradients on this machine.

The gradients are those of networks on Fashion-MNIST, the mean of several batches of 32, with the initial weights and
after some steps of training. They are computed again in other ways and encoded. The table shows the largest distance
between two shares of a slot, relative to the k-th smallest norm of a share, as rtol is.

columns of the table:
  trained      number of training steps
  k            k of the code; r is 2k, as with s = k / 2
  encode       float32 shares against float64 shares of the same gradient, which honest nodes can't avoid
  again        computed again in the same way; 0 means equal bit for bit
  threads      with 2 threads instead of 1
  strict       with torch.use_deterministic_algorithms
  order        with the batches added up in reverse order
  kernels      with torch's own kernels instead of oneDNN's
  per 1e-6     the largest of these five plus that of encode, relative to rtol's default

examples:
  python -m benchmarks.honest_noise --models mlp,cnn     in a minute or two
  python -m benchmarks.honest_noise
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from solon_fl import FourierCode
from solon_fl.clients.determinism import deterministic, strictly_deterministic
from solon_fl.simulations.datasets import Dataset, build_model, load_dataset

COMPRESSIONS = (3, 6, 10, 20)
BATCH_SIZE = 32
WAYS = ("again", "threads", "strict", "order", "kernels")


def gradient_of(model: nn.Module, dataset: Dataset, batches: Sequence[int]) -> Tensor:
    """Return the mean gradient of these batches, added up in this order, as a node computes it."""
    model.zero_grad()
    for batch in batches:
        chosen = np.random.default_rng(batch).integers(len(dataset.train_labels), size=BATCH_SIZE)
        with deterministic(batch, torch.device("cpu")):
            logits = model(dataset.train_inputs[chosen])
            functional.cross_entropy(logits, dataset.train_labels[chosen]).backward()  # type: ignore[no-untyped-call]  # torch's
    parts = [value.grad.reshape(-1) for value in model.parameters() if value.grad is not None]
    return torch.cat(parts) / len(batches)


@contextmanager
def computing(way: str) -> Iterator[None]:
    threads, enabled = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(2 if way == "threads" else threads)
    setattr(torch.backends.mkldnn, "enabled", way != "kernels")  # noqa: B010 - the stubs lack the setter
    try:
        with strictly_deterministic(way == "strict"):
            yield
    finally:
        torch.set_num_threads(threads)
        setattr(torch.backends.mkldnn, "enabled", enabled)  # noqa: B010


def distances(gradient: Tensor, others: dict[str, Tensor], compression: int) -> dict[str, float]:
    """Return the largest relative distance of a slot's shares for each other way of computing."""
    code = FourierCode(group_size=2 * compression, compression=compression)
    slots = range(code.group_size)
    shares = [code.encode(gradient, slot).double() for slot in slots]
    unit = float(torch.stack([share.norm() for share in shares]).sort().values[compression - 1])
    exact = gradient.double()

    def farthest(other: Callable[[int], Tensor]) -> float:
        return max(float((other(slot).double() - shares[slot]).norm()) for slot in slots) / unit

    found = {"encode": farthest(lambda slot: code.encode(exact, slot))}
    return found | {way: farthest(lambda slot, g=other: code.encode(g, slot)) for way, other in others.items()}  # type: ignore[misc]


def train(model: nn.Module, dataset: Dataset, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        gradient_of(model, dataset, [10_000 + step])
        optimizer.step()


def rows_of(name: str, dataset: Dataset, num_batches: int, steps: int) -> Iterator[list[str]]:
    """Yield the table's rows of one network."""
    model = build_model(name, dataset.input_shape, dataset.num_classes, seed=0)
    for trained in (0, steps):
        train(model, dataset, trained)
        batches = list(range(num_batches))
        gradient = gradient_of(model, dataset, batches)
        others = {}
        for way in WAYS:
            with computing(way):
                others[way] = gradient_of(model, dataset, batches[::-1] if way == "order" else batches)
        for compression in COMPRESSIONS:
            found = distances(gradient, others, compression)
            largest = max(found[way] for way in WAYS)
            cells = [f"{found[way]:.1e}" if found[way] else "0" for way in ("encode", *WAYS)]
            yield [name, str(trained), str(compression), *cells, f"{(largest + found['encode']) / 1e-6:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn,resnet18", help="names of networks; default mlp,cnn,resnet18")
    parser.add_argument("--batches", type=int, default=10, help="batches per gradient; default 10")
    parser.add_argument("--steps", type=int, default=200, help="training steps before the second half; default 200")
    arguments = parser.parse_args()
    if min(arguments.batches, arguments.steps) < 1:
        parser.error(f"--batches and --steps must be at least 1; got {arguments.batches} and {arguments.steps}")
    torch.set_num_threads(1)
    dataset = load_dataset("fashion-mnist-6k")
    header = ["network", "trained", "k", "encode", *WAYS, "per 1e-6"]
    names, rows = arguments.models.split(","), []
    with Progress(console=Console(stderr=True)) as progress:
        for name in progress.track(names, description="networks"):
            rows += list(rows_of(name, dataset, arguments.batches, arguments.steps))
    print("\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]))
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
