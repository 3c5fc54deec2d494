"""Measure the server's peak memory in every round of a long run, in units of the model. Linux only.

A Grid plays the nodes and returns copies of shares encoded in advance, so that only the server's memory is measured.

    python -m benchmarks.server_memory --dim 1000000 --rounds 200
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from solon_fl import SolonConfig
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import RoundReport, SolonStrategy
from solon_fl.task import SHARE, TASK
from solon_fl.wire import to_array


class SharesReady(InProcessGrid):
    """Answers every task with a new copy of its slot's share of one gradient. Some slots of each group lie."""

    def __init__(self, config: SolonConfig, gradient: Tensor) -> None:
        super().__init__(ClientApp(), config.num_nodes)
        code = config.make_code()
        self.shares = [to_array(code.encode(gradient, slot)) for slot in range(config.group_size)]
        self.lie = to_array(torch.ones(code.share_dim(gradient.numel())))
        self.liars = set(range(config.byzantine))

    def _handle(self, message: Message) -> Message:
        task = message.content[TASK]  # config_records would create a reference cycle, which keeps the message alive
        assert isinstance(task, ConfigRecord)
        slot = task["slot"]
        assert isinstance(slot, int)
        share = self.lie if slot in self.liars else self.shares[slot]
        data = bytes(bytearray(share.data))  # a new copy, as if it came over the network
        array = Array(dtype=share.dtype, shape=tuple(share.shape), stype=share.stype, data=data)
        return Message(RecordDict({SHARE: ArrayRecord({SHARE: array})}), reply_to=message)


def status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def measure(config: SolonConfig, dim: int, rounds: int, momentum: float = 0.0) -> list[int]:
    """Return the peak of every round, in bytes above the memory of the process before the run.

    A run with a tiny model comes first, so that the memory that torch and Flower take in their first round is excluded.
    """
    if dim > 1000:
        measure(config, 1000, 2, momentum)
    grid = SharesReady(config, torch.randn(dim, generator=torch.Generator().manual_seed(0)))
    initial = ArrayRecord({"weights": to_array(torch.zeros(dim))})
    reset = Path("/proc/self/clear_refs")
    peaks = []

    def note(report: RoundReport) -> None:
        assert len(report.corrupt_nodes) == config.byzantine * config.num_groups
        assert report.failed_groups == ()
        peaks.append(status("VmHWM") - baseline)
        reset.write_text("5")  # resets the high-water mark to the current memory

    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=momentum)
    strategy = SolonStrategy(config, optimizer, on_round=note)
    reset.write_text("5")
    baseline = status("VmRSS")
    strategy.start(grid, initial, num_rounds=rounds, timeout=60)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1_000_000, help="d, entries of the model; default 1000000")
    parser.add_argument("--rounds", type=int, default=200, help="rounds of the run; default 200")
    parser.add_argument("--nodes", type=int, default=20, help="P, the number of nodes; default 20")
    parser.add_argument("--byzantine", type=int, default=5, help="s, liars in each group; default 5")
    parser.add_argument("--compression", type=int, default=10, help="k: a share is 1/k of the gradient; default 10")
    parser.add_argument("--group-size", type=int, default=20, help="r, nodes of a group; default 20")
    parser.add_argument("--momentum", type=float, default=0.0, help="momentum of the server's SGD; default 0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = SolonConfig(
        num_nodes=arguments.nodes,
        byzantine=arguments.byzantine,
        compression=arguments.compression,
        group_size=arguments.group_size,
    )
    peaks = measure(config, arguments.dim, arguments.rounds, arguments.momentum)
    model = 4 * arguments.dim
    shares = config.num_nodes * 4 * config.make_code().share_dim(arguments.dim)
    picked = sorted({1, 2, 10, len(peaks) // 2, len(peaks)} & set(range(1, len(peaks) + 1)))
    result = {
        "model_bytes": model,
        "shares_bytes": shares,
        "peak_by_round": {number: peaks[number - 1] for number in picked},
        "models_beside_the_shares": {number: round((peaks[number - 1] - shares) / model, 2) for number in picked},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
