"""The object that describes one simulated run."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from flwr.clientapp.typing import Mod
from torch import Tensor

from solon_fl.checks import check_one_of, check_whole
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import (
    Liars,
    RegroupedLiars,
    attack_named,
    from_round,
    make_attack_mod,
    try_own_attack,
)
from solon_fl.simulations.datasets import check_dataset_name, check_model_name
from solon_fl.simulations.own import import_path, is_own
from solon_fl.simulations.run.own_strategies import strategy_named
from solon_fl.strategies import RoundReport
from solon_fl.strategies.loop import RoundStrategy

__all__ = ["Engine", "Scenario"]

Engine = Literal["in-process", "ray"]
MomentumAt = Literal["best", "server", "nodes"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who trains what, on which data, under which attack.

    Parameters
    ----------
    config : SolonConfig
        Nodes, liars, code, seed. Other strategies than Solon use those settings that they know. A referee is honest,
        and computes in the server's process.
    strategy : str
        One of `STRATEGIES`, or your own aggregator: ``module:name`` of a function that makes one tensor, (d,), of the
        nodes' gradients, an (n, d) tensor, or of a Flower strategy, or of a class or function that makes one of them.
        Those of ``num_nodes`` and ``num_liars`` that its signature names are passed.
    attack : str or None
        One of `ATTACKS`, or your own, as `make_attack_mod` takes it. None: all nodes are honest.
    attack_from : int
        Round from which on the liars lie. Before it they are honest.
    num_liars : int, optional
        Liars among all nodes. Each of Solon's groups gets at most s of them, or as many as the others if the config has
        audits, which find out more than s. Strategies without groups are told this
        number. Default: s in every group. With the config's regroup "round" any node may lie and the default is s in
        all; if there are more, chance decides whether a group ever has more than s.
    dataset, model : str
        One of `DATASETS` and one of `MODELS`, or your own, as `load_dataset` and `build_model` take them. The model
        must be for the kind of data.
    dirichlet : float, optional
        alpha > 0: every node draws its batches from its own part of the training examples, in which classes are
        unequally frequent. Of each class the nodes get shares drawn from a symmetric Dirichlet distribution; the
        smaller alpha, the fewer classes has a node. Default: all nodes draw from all examples. Not for Solon and Draco,
        where several nodes must compute the gradient of one batch, and so must have it.
    data_dir : Path, optional
        Folder or file of a data set that is not embedded.
    image_size : int, optional
        Side in pixels to which images of your own are scaled and cropped; see `load_dataset`.
    rounds, batch_size : int
        In each round every group computes batches_per_group batches of batch_size examples.
    learning_rate, momentum : float
        Of SGD.
    momentum_at : "best", "server" or "nodes"
        Of strategies that aggregate plain gradients: whether the server's optimizer has the momentum, or every node
        sends its own, m = momentum * m + gradient, and the server has none (Karimireddy et al. 2021). "best": as the
        strategy's `NamedStrategy.momentum_at` says; with engine "ray" the server. FedAvg trains alike either way.
        Solon's and Draco's is the server's, and Signum's the nodes', whatever stands here. All nodes' momenta are in
        this process's memory, P vectors of the model's size.
    sign_learning_rate : float
        Of the server's SGD with strategy "signum", where the nodes have the momentum.
    local_learning_rate : float
        Of the local steps in mode "update".
    engine : "in-process" or "ray"
        Where the ClientApp runs: in this process, or on Flower's own simulation (with the extra "ray").
    compute_once : bool
        Compute what all honest nodes of a group have in common once per group and process, not once per node.

    Raises
    ------
    ConfigurationError
        If a name is unknown (the message lists those that exist), a number is out of its range, or the settings exclude
        each other, such as an attack against Solon's code and another strategy. If code of your own is not found, or
        does not do what it must in a trial on random vectors.

    Notes
    -----
    Code of your own is imported when a scenario is made, also by `Outcome.load`. In Python the function or class
    itself is taken, too, and becomes the text by which it can be imported.
    """

    config: SolonConfig
    strategy: str = "solon"
    attack: str | None = None
    attack_from: int = 1
    num_liars: int | None = None
    dataset: str = "fashion-mnist-6k"
    model: str = "cnn"
    dirichlet: float | None = None
    data_dir: Path | None = None
    image_size: int | None = None
    rounds: int = 60
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    momentum_at: MomentumAt = "best"
    sign_learning_rate: float = 0.002
    local_learning_rate: float = 0.05
    engine: Engine = "in-process"
    compute_once: bool = True

    def __post_init__(self) -> None:
        for name in ("strategy", "attack", "dataset", "model"):
            object.__setattr__(self, name, import_path(name, getattr(self, name)))
        self._check_names()
        if settings := strategy_named(self.strategy).settings:
            object.__setattr__(self, "config", replace(self.config, **settings))
        self._check_numbers()
        self._check_num_liars()
        self._check_combination()
        strategy_named(self.strategy).check(self)
        self._try_own_attack()

    def _check_names(self) -> None:
        strategy_named(self.strategy)
        if self.attack is not None:
            attack_named(self.attack)
        check_dataset_name(self.dataset)
        check_model_name(self.model)
        check_one_of("engine", self.engine, get_args(Engine))
        check_one_of("momentum_at", self.momentum_at, get_args(MomentumAt))

    def _check_numbers(self) -> None:
        for name in ("rounds", "batch_size", "attack_from"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1; got {name}={getattr(self, name)}.")
        if self.image_size is not None:
            check_whole("image_size", self.image_size, 1)
        for name in ("learning_rate", "sign_learning_rate", "local_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be positive; got {name}={getattr(self, name)}.")
        if self.dirichlet is not None and not 0 < self.dirichlet < math.inf:
            raise ConfigurationError(f"dirichlet must be positive; got dirichlet={self.dirichlet}.")
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum must be in [0, 1); got momentum={self.momentum}.")

    def _check_num_liars(self) -> None:
        config = self.config
        most = config.num_nodes if config.audit else config.byzantine * config.num_groups
        if self.num_liars is None or 0 <= self.num_liars <= most:
            return
        in_groups = f"byzantine={config.byzantine} in each of {config.num_groups} groups"
        raise ConfigurationError(
            f"num_liars must be from 0 to {most}, {'all nodes' if config.audit else in_groups}; got "
            f"num_liars={self.num_liars}; raise byzantine, or lower num_liars, or let a referee audit."
        )

    def _check_combination(self) -> None:
        runs_solon = strategy_named(self.strategy).client == "solon"
        if not runs_solon and self.config.mode == "update":
            raise ConfigurationError(f"mode='update' is for strategy='solon'; got strategy={self.strategy!r}.")
        if not runs_solon and self.attack is not None and attack_named(self.attack).needs_code:
            raise ConfigurationError(
                f"attack={self.attack!r} is made against Solon's code; got strategy={self.strategy!r}; use "
                "strategy='solon', or another attack."
            )
        if self.dirichlet is not None and strategy_named(self.strategy).client in ("solon", "draco"):
            raise ConfigurationError(
                f"dirichlet gives every node examples of its own, but with strategy={self.strategy!r} several nodes "
                f"compute the gradient of one batch; got dirichlet={self.dirichlet}; leave it out, or choose another "
                "strategy."
            )
        if self.nodes_have_momentum and self.engine == "ray":
            raise ConfigurationError(
                "momentum_at='nodes' is simulated with engine='in-process' alone, where liars can know the momentum of "
                f"others; got engine={self.engine!r}; use momentum_at='server'."
            )
        if self.config.regroup == "round" and self.engine != "in-process":
            raise ConfigurationError(
                "regroup='round' is simulated with engine='in-process' alone, where the liars can tell each other "
                f"their places; got engine={self.engine!r}."
            )

    def _try_own_attack(self) -> None:
        if self.attack is not None and is_own(self.attack):
            is_coded = strategy_named(self.strategy).client == "solon"
            num_vectors = self.config.group_size if is_coded else self.config.num_nodes
            try_own_attack(self.attack, num_vectors, self.config.make_decoder() if is_coded else None)

    @property
    def nodes_have_momentum(self) -> bool:
        """Whether nodes that send plain gradients send their momentum instead."""
        strategy = strategy_named(self.strategy)
        place = self.momentum_at
        if place == "best":
            place = "server" if self.engine == "ray" else strategy.momentum_at
        return strategy.client == "plain" and place == "nodes"

    @property
    def expected_liars(self) -> int:
        """Liars among all nodes that a strategy without groups must be ready for, an attack or not."""
        if self.num_liars is not None:
            return self.num_liars
        return self.config.byzantine * (1 if self.config.regroup == "round" else self.config.num_groups)

    @property
    def liars(self) -> frozenset[int]:
        """Numbers of the nodes that lie, chosen by the seed; see `num_liars`.

        A node's number is group * group_size + slot. With regroup "round" it is the partition id, and any node may
        lie.
        """
        if self.attack is None:
            return frozenset()
        size = self.config.group_size
        most = max(self.config.byzantine, -(-self.expected_liars // self.config.num_groups))
        rng = torch.Generator().manual_seed(self.config.seed)
        if self.config.regroup == "round":
            return frozenset(
                torch.randperm(self.config.num_nodes, generator=rng, device="cpu")[: self.expected_liars].tolist()
            )
        if self.num_liars is None:
            each = self.config.byzantine
            chosen = [torch.randperm(size, generator=rng, device="cpu")[:each] for _ in range(self.config.num_groups)]
            return frozenset(int(slot) + group * size for group, slots in enumerate(chosen) for slot in slots)
        liars: list[int] = []
        for number in torch.randperm(self.config.num_nodes, generator=rng, device="cpu").tolist():
            if len(liars) < self.num_liars and sum(n // size == number // size for n in liars) < most:
                liars.append(number)
        return frozenset(liars)

    @property
    def timeout(self) -> float:
        """Deadline of a round in seconds. In this process the first look finds all replies that there will be."""
        return 0.01 if self.engine == "in-process" else 600.0

    def make_liars(self) -> Liars:
        """Return the nodes that lie, as the attacks' mods must know them."""
        return RegroupedLiars(self.liars) if self.config.regroup == "round" else Liars(self.liars)

    def mods(self, liars: Liars | None = None) -> list[Mod]:
        """Return the attack as a Flower mod, or nothing.

        Parameters
        ----------
        liars : Liars, optional
            Those by which the mod goes. Default: `liars`, by their numbers.
        """
        if self.attack is None:
            return []
        strategy = strategy_named(self.strategy)
        decoder = self.config.make_decoder() if strategy.client == "solon" else None
        told = Liars(self.liars) if liars is None else liars
        attack = make_attack_mod(self.attack, told, self.config.seed, strategy.aggregate(self), decoder)
        return [attack if self.attack_from == 1 else from_round(attack, self.attack_from)]

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the server's optimizer."""
        rate = self.learning_rate if self.config.mode == "gradient" else 1.0
        at_server = self.config.mode == "gradient" and not self.nodes_have_momentum
        momentum = self.momentum if at_server else 0.0
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum)

    def make_sign_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the server's optimizer for signs, without momentum: the nodes have that."""
        return torch.optim.SGD(parameters, lr=self.sign_learning_rate)

    def make_strategy(
        self, buffers: tuple[str, ...], on_round: Callable[[RoundReport], None], **arguments: Any
    ) -> RoundStrategy[Any]:
        """Return the Flower strategy; `arguments` are others of its own."""
        return strategy_named(self.strategy).make(self, buffers=buffers, on_round=on_round, **arguments)
