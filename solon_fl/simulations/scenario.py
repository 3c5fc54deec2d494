"""One simulated run, described by one object."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAvg, MultiKrum, Strategy
from torch import Tensor

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks.registry import ATTACKS, make_attack_mod
from solon_fl.simulations.datasets import DATASETS
from solon_fl.simulations.models import MODELS
from solon_fl.strategies import GradientStrategy, RoundReport, SolonStrategy

__all__ = ["ATTACKS", "STRATEGIES", "Engine", "Scenario"]

Engine = Literal["in-process", "ray"]

STRATEGIES = ("solon", "fedavg", "multikrum")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who trains what, on which data, under which attack.

    Parameters
    ----------
    config : SolonConfig
        Nodes, liars, code, seed. The other strategies take num_nodes and the number of liars from it.
    strategy : str
        One of `STRATEGIES`: "solon", or Flower's "fedavg" or "multikrum" on gradients.
    attack : str or None
        One of `ATTACKS`, or None: all nodes are honest.
    dataset, model : str
        One of `DATASETS` and `MODELS`.
    data_dir : Path, optional
        Where a data set that is not embedded lies.
    rounds, batch_size : int
        Every round, each of the config's P batches (batches_per_group a group) has batch_size images.
    learning_rate, momentum : float
        Of the server's SGD.
    local_learning_rate : float
        Of the local steps, in mode "update".
    engine : "in-process" or "ray"
        Where the ClientApp runs: here, or on Flower's own simulation (needs the extra "ray").
    compute_once : bool
        Honest nodes of a group compute the same gradient: compute it once per group and process.

    Raises
    ------
    ConfigurationError
        If a name is unknown (the message lists those that exist), a number is out of its range, or the attack is made
        against Solon's code and the strategy is another.
    """

    config: SolonConfig
    strategy: str = "solon"
    attack: str | None = None
    dataset: str = "fashion-mnist-6k"
    model: str = "cnn"
    data_dir: Path | None = None
    rounds: int = 60
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    local_learning_rate: float = 0.05
    engine: Engine = "in-process"
    compute_once: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("strategy", self.strategy, STRATEGIES),
            ("attack", self.attack, (None, *ATTACKS)),
            ("dataset", self.dataset, tuple(DATASETS)),
            ("model", self.model, tuple(MODELS)),
            ("engine", self.engine, get_args(Engine)),
        ):
            if value not in known:
                names = ", ".join("none" if option is None else option for option in known)
                raise ConfigurationError(f"{name} must be one of {names}; got {name}={value!r}.")
        for name in ("rounds", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1; got {name}={getattr(self, name)}.")
        for name in ("learning_rate", "local_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be positive; got {name}={getattr(self, name)}.")
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum must be in [0, 1); got momentum={self.momentum}.")
        if self.strategy != "solon" and self.config.mode == "update":
            raise ConfigurationError(f"mode='update' is for strategy='solon'; got strategy={self.strategy!r}.")
        if self.strategy == "multikrum" and self.config.num_nodes < 2 * len(self.liars) + 3:
            raise ConfigurationError(
                "multikrum needs num_nodes >= 2 * liars + 3; "
                f"got num_nodes={self.config.num_nodes}, liars={len(self.liars)}; add nodes or lower byzantine."
            )
        self.mods()  # refuses an attack on Solon's code where there is none

    @property
    def liars(self) -> frozenset[int]:
        """Numbers (group * group_size + slot) of the nodes that lie: s of each group, chosen by the seed."""
        if self.attack is None:
            return frozenset()
        size = self.config.group_size
        rng = torch.Generator().manual_seed(self.config.seed)
        chosen = [torch.randperm(size, generator=rng)[: self.config.byzantine] for _ in range(self.config.num_groups)]
        return frozenset(int(slot) + group * size for group, slots in enumerate(chosen) for slot in slots)

    def mods(self) -> list[Mod]:
        """Return the attack as a Flower mod, or nothing."""
        if self.attack is None:
            return []
        code = self.config.make_code() if self.strategy == "solon" else None
        return [make_attack_mod(self.attack, self.liars, self.config.seed, aggregate=None, code=code)]

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the server's optimizer."""
        rate = self.learning_rate if self.config.mode == "gradient" else 1.0
        momentum = self.momentum if self.config.mode == "gradient" else 0.0
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum)

    def make_strategy(self, buffers: tuple[str, ...], on_round: Callable[[RoundReport], None]) -> Strategy:
        """Return the Flower strategy."""
        config = self.config
        if self.strategy == "solon":
            return SolonStrategy(
                config, self.make_optimizer, buffers=buffers, on_round=on_round, projection_seed=config.seed
            )
        everybody: dict[str, Any] = {
            "fraction_evaluate": 0.0,
            "min_train_nodes": config.num_nodes,
            "min_available_nodes": config.num_nodes,
        }
        inner: Strategy = FedAvg(**everybody)
        if self.strategy == "multikrum":
            expected_liars = config.byzantine * config.num_groups
            inner = MultiKrum(
                num_malicious_nodes=expected_liars,
                num_nodes_to_select=config.num_nodes - expected_liars,
                **everybody,
            )
        return GradientStrategy(inner, self.make_optimizer, buffers=buffers)
