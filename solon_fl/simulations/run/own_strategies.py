"""Strategies by name: those of this package, and the user's own aggregators and Flower strategies by import path."""

import copy
import itertools
from collections.abc import Callable, Mapping
from functools import cache, update_wrapper
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from solon_fl.baselines import AggregatorStrategy, GradientStrategy
from solon_fl.baselines.rules import liars_among
from solon_fl.checks import check_one_of
from solon_fl.simulations.attacks import Aggregate
from solon_fl.simulations.own import OWN, OwnCodeError, arguments_for, call_own, is_own, load_own, seeded, theirs
from solon_fl.simulations.run.strategies import STRATEGIES, NamedStrategy, Setting, flower_aggregate
from solon_fl.strategies.loop import RoundStrategy

__all__ = ["OWN_COLOURS", "strategy_named"]

OWN_COLOURS = ("#4477AA", "#AA3377", "#228833", "#BBBBBB", "#6F4C9B", "#EE99AA")
"""Colours of the user's own strategies, in the order in which they are first used. This package's differ."""

_TRIED_LENGTH = 64  # entries of a vector
_colours = itertools.cycle(OWN_COLOURS)


def strategy_named(name: str) -> NamedStrategy:
    """Return the strategy of `STRATEGIES` with this name, or the user's own if the name is an import path.

    Raises
    ------
    ConfigurationError
        If there is no such strategy.
    """
    if is_own(name):
        return _own(name)
    check_one_of("strategy", name, STRATEGIES, OWN)
    return STRATEGIES[name]


@cache
def _own(name: str) -> NamedStrategy:
    return _OwnStrategy(name, load_own("strategy", name))


class _OwnStrategy(NamedStrategy):
    """The user's own function of the gradients, or own Flower strategy."""

    momentum_at = "nodes"  # where most rules resist attacks better; a mean trains the same either way

    def __init__(self, name: str, found: Any) -> None:
        self.title = name
        self.colour = next(_colours)
        self._found = found

    def check(self, setting: Setting) -> None:
        """Let a function aggregate random vectors now. If it raised later, the round would only be skipped."""
        made = self._made(setting)
        if isinstance(made, Strategy):
            return
        vectors = torch.randn(
            setting.config.num_nodes, _TRIED_LENGTH, generator=torch.Generator().manual_seed(0), device="cpu"
        )
        with seeded(0), theirs("strategy", self.title):
            result = made(vectors)
        if not isinstance(result, Tensor) or result.shape != (_TRIED_LENGTH,):
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"{type(result).__name__}"
            raise OwnCodeError(
                f"strategy={self.title!r} must return one tensor, (d,), for the gradients, (n, d); got {got} for "
                f"{tuple(vectors.shape)}; return a tensor with an entry for each column."
            )

    def make(self, setting: Setting, **arguments: Any) -> RoundStrategy[Any]:
        made, config = self._made(setting), setting.config
        if isinstance(made, Strategy):
            return GradientStrategy(made, setting.make_optimizer, downlink=config.downlink, **arguments)
        return AggregatorStrategy(config.num_nodes, made, setting.make_optimizer, downlink=config.downlink, **arguments)

    def aggregate(self, setting: Setting) -> Aggregate:
        made = self._made(setting)
        return flower_aggregate(self.title, lambda present: made) if isinstance(made, Strategy) else made

    def _made(self, setting: Setting) -> Strategy | Aggregate:
        """Return the aggregator for this setting. A class, or a function without vectors, is called to make it."""
        nodes, liars = setting.config.num_nodes, setting.expected_liars
        offered = {
            "num_nodes": nodes,
            "num_liars": liars,
            "num_malicious_nodes": liars,
        }  # the last is the name in Flower
        found, made_by = self._found, 0
        while made_by < 2 and callable(found):
            named, others = arguments_for(found, offered)
            if others and not isinstance(found, type):
                if len(others) > 1:
                    break
                return _told_who_is_there(found, named, nodes)
            found, made_by = call_own("strategy", self.title, found, offered), made_by + 1
        if isinstance(found, Strategy) and not isinstance(found, RoundStrategy):
            return _asking_all(copy.deepcopy(found), nodes)
        raise OwnCodeError(
            f"strategy={self.title!r} must be a function of the gradients, an (n, d) tensor, or a "
            "flwr.serverapp.strategy.Strategy, or a class or function that returns one; got "
            f"{_shown(found)}; see docs/how-to/own-model-and-data.md."
        )


def _told_who_is_there(rule: Callable[..., Tensor], arguments: Mapping[str, int], num_nodes: int) -> Aggregate:
    """Return a rule that is passed the numbers that it names. Missing nodes reduce the number of liars."""

    def told(vectors: Tensor) -> Tensor:
        present = {
            name: value if name == "num_nodes" else liars_among(value, num_nodes, len(vectors))
            for name, value in arguments.items()
        }
        return rule(vectors, **present)

    return update_wrapper(told, rule)


def _shown(found: Any) -> str:
    parameters = arguments_for(found, {})[1] if callable(found) else ()
    return type(found).__name__ + (f" of {', '.join(parameters)}" if parameters else "")


def _asking_all(strategy: Strategy, num_nodes: int) -> Strategy:
    """Make a Flower strategy wait for all nodes, and leave evaluation to the server."""
    settings = {"fraction_evaluate": 0.0, "min_train_nodes": num_nodes, "min_available_nodes": num_nodes}
    for name, value in settings.items():
        if hasattr(strategy, name):
            setattr(strategy, name, value)
    return strategy
