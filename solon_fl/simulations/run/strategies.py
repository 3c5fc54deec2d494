"""All strategies by name: how each is made for a scenario, its costs, and what an attacker knows about it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from torch import Tensor

from solon_fl.baselines import AggregatorStrategy, DracoStrategy, GradientStrategy, SignumStrategy
from solon_fl.baselines.draco.task import DracoCodeName, make_draco_code
from solon_fl.baselines.rules import (
    Bucketing,
    Rule,
    bulyan,
    caf,
    centered_clipping,
    dnc,
    geometric_median,
    liars_among,
    nnm,
    ready_for,
)
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import Aggregate
from solon_fl.simulations.run._compat import become_server
from solon_fl.strategies import GroupReport, RoundReport, SolonStrategy
from solon_fl.strategies.loop import RoundStrategy
from solon_fl.task import ARRAYS
from solon_fl.wire import to_array, trusted_tensor

__all__ = ["STRATEGIES", "NamedStrategy", "Setting", "flower_aggregate"]

Client = Literal["solon", "plain", "draco", "signum"]
Place = Literal["server", "nodes"]


class Setting(Protocol):
    """What a strategy needs to know of its scenario. `Scenario` has all of it."""

    @property
    def config(self) -> SolonConfig:
        """Nodes, liars, code, seed."""

    @property
    def liars(self) -> Set[int]:
        """Numbers of the nodes that lie."""

    @property
    def expected_liars(self) -> int:
        """Number of liars among all nodes that a strategy without groups must tolerate."""

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the server's optimizer."""

    def make_sign_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the server's optimizer for signs."""


class NamedStrategy(ABC):
    """A strategy that a scenario can name.

    Attributes
    ----------
    title : str
        Name that is shown to users.
    colour : str
        Colour in plots. Colour-blind readers can tell the colours apart (Okabe & Ito, Tol).
    client : str
        Kind of client: "solon" (shares), "plain" (the gradient of one batch), "draco" or "signum".
    momentum_at : "server" or "nodes"
        Where momentum is applied if the scenario says "best": where the strategy resisted attacks better in our
        measurements. It matters only for client "plain": Solon and Draco use the server, and Signum the nodes.
    settings : mapping
        Entries of the scenario's `SolonConfig` that it overrides.
    """

    title: str
    colour: str
    client: Client = "plain"
    momentum_at: Place = "server"
    settings: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        """Return the Flower strategy; `arguments` are its further arguments, such as buffers and on_round."""

    @abstractmethod
    def aggregate(self, setting: Setting) -> Aggregate:
        """Return the function by which the server aggregates vectors of all nodes, or of a group. Attackers know it."""

    def check(self, setting: Setting) -> None:  # noqa: B027  # most strategies have nothing to check
        """Raise ConfigurationError if the strategy has no guarantee in this setting."""

    def batches_per_node(self, setting: Setting) -> int:
        """Return how many batches the busiest node computes in a round. All nodes together see P different batches."""
        return 1

    def waited(self, report: RoundReport, unheard: Set[int] = frozenset()) -> bool:
        """Return whether a deployed server would have waited for its deadline because a node did not reply.

        `unheard` has the ids of nodes that were silent in the last `MOST_SILENCES` rounds.
        """
        return bool(report.silent_nodes)


class _Solon(NamedStrategy):
    client = "solon"

    def __init__(self, title: str, colour: str, **settings: Any) -> None:
        self.title, self.colour = title, colour
        self.settings = settings

    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        config = setting.config
        return SolonStrategy(config, setting.make_optimizer, projection_seed=config.seed, **arguments)

    def aggregate(self, setting: Setting) -> Aggregate:
        decoder = setting.config.make_decoder()

        def decode(shares: Tensor) -> Tensor:
            gradient = decoder.decode(shares).gradient
            if gradient is None:
                raise ArithmeticError("the group can't be decoded")
            return gradient

        return decode

    def batches_per_node(self, setting: Setting) -> int:
        return setting.config.batches_per_group

    def waited(self, report: RoundReport, unheard: Set[int] = frozenset()) -> bool:
        # A group is decoded as soon as k + s shares agree. Only after waiting for the other nodes does the server ask
        # resting nodes, and the referee if the shares don't settle it. With a referee it does not wait for `unheard`.
        return any(
            (bool(group.silent_nodes) and (group.escalated or not group.decoded))
            or (bool(set(group.silent_nodes) - unheard) and _was_referees(group))
            for group in report.groups
        )


def _was_referees(group: GroupReport) -> bool:
    """Return whether the referee settled a group."""
    return group.referee is not None and group.referee.reason not in ("suspects", "audit")


class _Flower(NamedStrategy):
    """One of Flower's own strategies, applied to gradients."""

    def __init__(
        self,
        title: str,
        colour: str,
        make_inner: Callable[..., Strategy],
        least_nodes: Callable[[int], int],
        momentum_at: Place = "nodes",
    ) -> None:
        self.title, self.colour = title, colour
        self.momentum_at = momentum_at
        self._make_inner = make_inner
        self._least_nodes = least_nodes

    @property
    def _robust(self) -> bool:
        """Whether it resists liars. FedAvg does not, and takes whatever arrives, as in Flower."""
        return self._least_nodes(1) > 1

    def check(self, setting: Setting) -> None:
        _check_nodes(self, self._least_nodes(setting.expected_liars), setting)

    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        inner = self._inner(setting, setting.config.num_nodes)
        if self._robust:
            arguments["for_present"] = partial(self._inner, setting)
        return GradientStrategy(inner, setting.make_optimizer, downlink=setting.config.downlink, **arguments)

    def aggregate(self, setting: Setting) -> Aggregate:
        return flower_aggregate(self.title, partial(self._inner, setting))

    def _inner(self, setting: Setting, present: int) -> Strategy:
        """Return the strategy for this number of vectors, which asks all nodes for them."""
        nodes = setting.config.num_nodes
        everybody = {"fraction_evaluate": 0.0, "min_train_nodes": nodes, "min_available_nodes": nodes}
        return self._make_inner(present, liars_among(setting.expected_liars, nodes, present), **everybody)


def _check_nodes(strategy: NamedStrategy, least: int, setting: Setting) -> None:
    nodes, liars = setting.config.num_nodes, setting.expected_liars
    if nodes < least:
        raise ConfigurationError(
            f"{strategy.title} needs at least {least} nodes for {liars} liars; got num_nodes={nodes}; add nodes, or "
            "lower num_liars or byzantine."
        )


class _Rule(NamedStrategy):
    """A robust aggregation rule of this package."""

    def __init__(
        self,
        title: str,
        colour: str,
        rule: Rule,
        least_nodes: Callable[[int], int],
        momentum_at: Place = "nodes",
    ) -> None:
        self.title, self.colour = title, colour
        self.momentum_at = momentum_at
        self._rule = rule
        self._least_nodes = least_nodes

    def check(self, setting: Setting) -> None:
        _check_nodes(self, self._least_nodes(setting.expected_liars), setting)

    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        config = setting.config
        rule = ready_for(self._rule_of_server(setting), setting.expected_liars, config.num_nodes)
        return AggregatorStrategy(config.num_nodes, rule, setting.make_optimizer, downlink=config.downlink, **arguments)

    def aggregate(self, setting: Setting) -> Aggregate:
        return ready_for(self._rule, setting.expected_liars, setting.config.num_nodes)

    def _rule_of_server(self, setting: Setting) -> Rule:
        return self._rule


class _Shuffled(_Rule):
    """A robust rule with random choices. The server uses the run's seed; attackers use a fixed seed of their own."""

    def __init__(
        self, title: str, colour: str, make_rule: Callable[..., Rule], least_nodes: Callable[[int], int]
    ) -> None:
        super().__init__(title, colour, lambda vectors, liars: make_rule(seed=2**62)(vectors, liars), least_nodes)
        self._make_rule = make_rule

    def _rule_of_server(self, setting: Setting) -> Rule:
        return self._make_rule(seed=setting.config.seed)


def flower_aggregate(title: str, inner_for: Callable[[int], Strategy]) -> Aggregate:
    """Return the aggregation of a Flower strategy. `inner_for` makes the strategy for a number of vectors."""
    become_server()

    def aggregate(vectors: Tensor) -> Tensor:
        replies = []
        for vector in vectors:
            content = RecordDict(
                {
                    ARRAYS: ArrayRecord({"vector": to_array(vector)}),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            )
            replies.append(Message(content, reply_to=Message(RecordDict(), 1, MessageType.TRAIN)))
        arrays, _ = inner_for(len(vectors)).aggregate_train(1, replies)
        if arrays is None:
            raise ArithmeticError(f"{title} returned nothing")
        return trusted_tensor(arrays["vector"])

    return aggregate


def _trimmed(nodes: int, liars: int, **everybody: Any) -> Strategy:
    return FedTrimmedAvg(beta=(liars + 0.25) / nodes, **everybody)  # it drops int(beta * nodes) values at each end


def _multikrum(nodes: int, liars: int, **everybody: Any) -> Strategy:
    return MultiKrum(num_malicious_nodes=liars, num_nodes_to_select=nodes - liars, **everybody)


class _Draco(NamedStrategy):
    client = "draco"

    def __init__(self, title: str, colour: str, code: DracoCodeName) -> None:
        self.title, self.colour = title, colour
        self._code: DracoCodeName = code

    def _byzantine(self, setting: Setting) -> int:
        """Return s: the liars of one group for the repetition code, and all liars for the cyclic code."""
        return setting.config.byzantine if self._code == "repetition" else setting.expected_liars

    def check(self, setting: Setting) -> None:
        code = make_draco_code(self._code, setting.config.num_nodes, self._byzantine(setting))
        for members in getattr(code, "groups", ()):
            liars = len(setting.liars & set(members))
            if liars > code.byzantine:
                raise ConfigurationError(
                    f"{self.title} needs at most byzantine={code.byzantine} liars in each of its groups; got {liars} "
                    f"among the nodes {members[0]} to {members[-1]}; set num_liars to {code.byzantine} or fewer."
                )

    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        config = setting.config
        return DracoStrategy(
            config.num_nodes,
            self._byzantine(setting),
            setting.make_optimizer,
            code=self._code,
            seed=config.seed,
            projection_seed=config.seed,
            downlink=config.downlink,
            **arguments,
        )

    def aggregate(self, setting: Setting) -> Aggregate:
        code = make_draco_code(self._code, setting.config.num_nodes, self._byzantine(setting))

        def decode(vectors: Tensor) -> Tensor:
            shaped = vectors.view(len(vectors), 2, -1) if code.is_complex else vectors
            gradient = code.decode(dict(enumerate(shaped))).gradient
            if gradient is None:
                raise ArithmeticError("the round can't be decoded")
            return gradient

        return decode

    def batches_per_node(self, setting: Setting) -> int:
        code = make_draco_code(self._code, setting.config.num_nodes, self._byzantine(setting))
        return max(len(code.batches(number)) for number in range(code.num_nodes))


class _Signum(NamedStrategy):
    title, colour, client = "Signum", "#CC79A7", "signum"

    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        return SignumStrategy(
            setting.config.num_nodes, setting.make_sign_optimizer, downlink=setting.config.downlink, **arguments
        )

    def aggregate(self, setting: Setting) -> Aggregate:
        return lambda vectors: vectors.sign().sum(0).sign()


STRATEGIES: dict[str, NamedStrategy] = {
    "solon": _Solon("Solon", "#0072B2"),
    "solon-reactive": _Solon("Solon (reactive)", "#EE7733", redundancy="reactive"),
    "solon-digest": _Solon("Solon (digests)", "#009988", verification="digest"),
    "solon-reactive-digest": _Solon("Solon (dig.+react)", "#EE3377", verification="digest", redundancy="reactive"),
    "solon-referee": _Solon("Solon (referee)", "#CC6677", referee=True),
    "solon-referee-digest": _Solon("Solon (dig.+ref.)", "#000000", verification="digest", referee=True),
    "fedavg": _Flower(
        "FedAvg", "#D55E00", lambda nodes, liars, **everybody: FedAvg(**everybody), lambda f: 1, momentum_at="server"
    ),
    "fedmedian": _Flower(
        "FedMedian", "#999933", lambda nodes, liars, **everybody: FedMedian(**everybody), lambda f: 2 * f + 1
    ),
    "fedtrimmedavg": _Flower("FedTrimmedAvg", "#882255", _trimmed, lambda f: 2 * f + 1),
    "krum": _Flower(
        "Krum",
        "#661100",
        lambda nodes, liars, **everybody: Krum(num_malicious_nodes=liars, **everybody),
        lambda f: 2 * f + 3,
    ),
    "multikrum": _Flower("MultiKrum", "#E69F00", _multikrum, lambda f: 2 * f + 3),
    "bulyan": _Rule("Bulyan", "#009E73", bulyan, lambda f: 4 * f + 3),
    "flower-bulyan": _Flower(
        "Bulyan (Flower's)",
        "#88CCEE",
        lambda nodes, liars, **everybody: Bulyan(num_malicious_nodes=liars, **everybody),
        lambda f: 4 * f + 3,
    ),
    "draco-repetition": _Draco("Draco (repetition)", "#56B4E9", "repetition"),
    "draco-cyclic": _Draco("Draco (cyclic)", "#332288", "cyclic"),
    "signum": _Signum(),
    "geometric-median": _Rule("Geometric median", "#44AA99", geometric_median, lambda f: 2 * f + 1),
    "centered-clipping": _Rule("Centred clipping", "#AA4499", centered_clipping, lambda f: 2 * f + 1),
    "caf": _Rule("CAF", "#117733", caf, lambda f: 2 * f + 1, momentum_at="server"),
    "nnm": _Rule("NNM + trimmed mean", "#DDCC77", nnm, lambda f: 2 * f + 1),
    "dnc": _Rule("DnC", "#6699CC", dnc, lambda f: 2 * f + 1),
    "bucketing": _Shuffled("Bucketing", "#994F00", partial(Bucketing, geometric_median), lambda f: 4 * f + 1),
}
"""The strategies that a scenario can name."""
