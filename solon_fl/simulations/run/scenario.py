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
    """The settings of one simulated run: nodes, strategy, attack, data, model and training.

    Parameters
    ----------
    config : SolonConfig
        Nodes, liars, code and seed. Strategies other than Solon use the settings that they know. A referee is honest,
        and computes in the server's process.
    strategy : str
        One of `STRATEGIES`, or your own aggregator as ``module:name``. It is a function that returns one tensor, (d,),
        for the nodes' gradients, an (n, d) tensor; or a Flower strategy; or a class or function that returns one of
        these. It is passed ``num_nodes`` and ``num_liars`` if its signature names them.
    attack : str or None
        One of `ATTACKS`, or your own, as for `make_attack_mod`. None: all nodes are honest.
    attack_from : int
        First round in which the liars lie. Before it they are honest.
    num_liars : int, optional
        Number of liars among all nodes. Each of Solon's groups gets at most s of them. With audits, which also find
        more than s, there may be more liars, and no group gets more than an equal part. Strategies without groups are
        told this number. Default: s in every group. With the config's regroup "round", any node may lie and the default
        is s in all; with more, chance decides whether a group ever has more than s.
    dataset, model : str
        One of `DATASETS` and one of `MODELS`, or your own, as for `load_dataset` and `build_model`. The model must suit
        the kind of data.
    dirichlet : float, optional
        alpha > 0: every node draws its batches from its own part of the training examples. The nodes' parts of each
        class are drawn from a symmetric Dirichlet distribution: with a smaller alpha a node has fewer classes. Default:
        all nodes draw from all examples. Not for Solon and Draco, where several nodes compute the gradient of the same
        batch, and so need the same examples.
    data_dir : Path, optional
        Folder or file of a data set that does not come with the package.
    image_size : int, optional
        Side in pixels to which your own images are scaled and cropped; see `load_dataset`.
    rounds, batch_size : int
        Number of rounds. In each of them every group computes batches_per_group batches of batch_size examples.
    learning_rate, momentum : float
        Settings of SGD.
    momentum_at : "best", "server" or "nodes"
        Where momentum is applied for strategies that aggregate plain gradients. "server": in the server's optimizer.
        "nodes": every node sends its own momentum, m = momentum * m + gradient, and the server applies none
        (Karimireddy et al. 2021). "best": as in the strategy's `NamedStrategy.momentum_at`; with engine "ray", the
        server. FedAvg trains the same either way. Solon and Draco always use the server, and Signum the nodes. The
        momenta of all nodes are in this process's memory: P vectors of the model's size.
    sign_learning_rate : float
        Learning rate of the server's SGD with strategy "signum", whose nodes apply the momentum.
    local_learning_rate : float
        Learning rate of the local steps in mode "update".
    engine : "in-process" or "ray"
        Where the ClientApp runs: in this process, or on Flower's own simulation engine (needs the extra "ray").
    compute_once : bool
        Compute the result that all honest nodes of a group share once per group and process, not once per node.

    Raises
    ------
    ConfigurationError
        If a name is unknown (the message lists the known ones), a number is out of range, or settings exclude each
        other, such as an attack on Solon's code with another strategy. If your own code is not found, or fails a trial
        on random vectors.

    Notes
    -----
    Your own code is imported when a scenario is created, also by `Outcome.load`. In Python you can also pass the
    function or class itself, which is replaced by its import path.
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
            f"num_liars={self.num_liars}; raise byzantine, lower num_liars, or let a referee audit."
        )

    def _check_combination(self) -> None:
        runs_solon = strategy_named(self.strategy).client == "solon"
        if not runs_solon and self.config.mode == "update":
            raise ConfigurationError(f"mode='update' needs strategy='solon'; got strategy={self.strategy!r}.")
        if not runs_solon and self.attack is not None and attack_named(self.attack).needs_code:
            raise ConfigurationError(
                f"attack={self.attack!r} is made against Solon's code; got strategy={self.strategy!r}; use "
                "strategy='solon', or another attack."
            )
        if self.dirichlet is not None and strategy_named(self.strategy).client in ("solon", "draco"):
            raise ConfigurationError(
                f"dirichlet gives every node its own examples, but with strategy={self.strategy!r} several nodes "
                f"compute the gradient of the same batch; got dirichlet={self.dirichlet}; leave it out, or choose "
                "another strategy."
            )
        if self.nodes_have_momentum and self.engine == "ray":
            raise ConfigurationError(
                "momentum_at='nodes' needs engine='in-process', where liars can know the momentum of other nodes; "
                f"got engine={self.engine!r}; use momentum_at='server'."
            )
        if self.config.regroup == "round" and self.engine != "in-process":
            raise ConfigurationError(
                "regroup='round' needs engine='in-process', where liars can tell each other their places; "
                f"got engine={self.engine!r}."
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
        """Number of liars among all nodes that a strategy without groups must tolerate, with or without an attack."""
        if self.num_liars is not None:
            return self.num_liars
        return self.config.byzantine * (1 if self.config.regroup == "round" else self.config.num_groups)

    @property
    def liars(self) -> frozenset[int]:
        """Numbers of the nodes that lie, chosen by the seed; see `num_liars`.

        A node's number is group * group_size + slot. With regroup "round" it is the partition id, and any node may lie.
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
        """Deadline of a round in seconds. In this process all replies arrive at once, so a short one is enough."""
        return 0.01 if self.engine == "in-process" else 600.0

    def make_liars(self) -> Liars:
        """Return the nodes that lie, for the attacks' mods."""
        return RegroupedLiars(self.liars) if self.config.regroup == "round" else Liars(self.liars)

    def mods(self, liars: Liars | None = None) -> list[Mod]:
        """Return the attack as a list of one Flower mod, or an empty list.

        Parameters
        ----------
        liars : Liars, optional
            The liars that the mod uses. Default: the nodes numbered in `liars`.
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
        """Return the server's optimizer for signs. It has no momentum, as the nodes apply it."""
        return torch.optim.SGD(parameters, lr=self.sign_learning_rate)

    def make_strategy(
        self, buffers: tuple[str, ...], on_round: Callable[[RoundReport], None], **arguments: Any
    ) -> RoundStrategy[Any]:
        """Return the Flower strategy; `arguments` are its further arguments."""
        return strategy_named(self.strategy).make(self, buffers=buffers, on_round=on_round, **arguments)
