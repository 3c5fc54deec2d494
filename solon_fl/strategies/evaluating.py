"""Evaluation of the model, by the server's ``evaluate_fn`` and by the nodes."""

import logging
import time
from collections.abc import Callable, Collection, Mapping

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from solon_fl.errors import ConfigurationError
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.fetching import fetcher_of
from solon_fl.strategies.replies import is_silence, one_line
from solon_fl.strategies.rounds import Run

__all__ = ["Evaluate", "evaluate_centrally", "evaluations", "warn_of_failed_evaluations"]

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]
logger = logging.getLogger("flwr")


def evaluations(run: Run, messages: dict[int, Message], grid: Grid) -> Collection[Message]:
    """Ask nodes to evaluate, with a message for each, and return their replies.

    Nodes that were silent once are asked again but not waited for.
    """
    replies: dict[int, Message] = {}
    asked = set(messages)
    started = time.monotonic()

    def receive(batch: list[tuple[int, Message]]) -> bool:
        for node_id, reply in batch:
            run.sender.learn(node_id, reply)
            run.evaluation_patience.record(node_id, time.monotonic() - started)
        replies.update(batch)
        late = not batch and 2 * len(replies) > len(asked)
        return late or asked <= replies.keys() | run.not_evaluating  # nodes that were silent once are not waited for

    def patience() -> float:
        return run.evaluation_patience.seconds(asked)

    _, unanswered = exchange(grid, messages, run.timeout, receive, lambda late: {}, patience)
    for message_id in unanswered:
        fetcher_of(grid).forget(message_id)
    newly_silent = asked - replies.keys() - run.not_evaluating
    if newly_silent:
        logger.warning(
            "No evaluation from nodes %s; the server will ask them again but no longer wait for them.",
            ", ".join(run.label(node_id) for node_id in sorted(newly_silent)),
        )
    run.not_evaluating |= newly_silent
    return replies.values()


def warn_of_failed_evaluations(run: Run, replies: Collection[Message], metrics: MetricRecord | None) -> None:
    """Log failed evaluations once for each node, with the first one's reason, and log once if there is no metric."""
    reasons: dict[int, str] = {}
    for reply in replies:
        if reply.has_error() and not is_silence(reply):
            reasons.setdefault(reply.metadata.src_node_id, one_line(f"error {reply.error.code}: {reply.error.reason}"))
    new = sorted(reasons.keys() - run.failed_evaluating)
    if new:
        logger.warning(
            "Evaluation failed on %d of the %d nodes that replied; the first reason is that of node %s: %s",
            *(len(reasons), len(replies), run.label(new[0]), reasons[new[0]]),
        )
    elif metrics is None and len(reasons) < len(replies) and not run.told_of_no_metrics:
        run.told_of_no_metrics = True
        logger.warning(
            "%d nodes evaluated, but no metric was reported by more than half of the nodes as one finite number; "
            "evaluate must return int or float values, and not NaN.",
            len(replies) - len(reasons),
        )
    run.failed_evaluating |= reasons.keys()


def evaluate_centrally(server_round: int, result: Result, evaluate_fn: Evaluate | None) -> None:
    """Evaluate the model with the evaluate_fn, and put its metrics into the result."""
    found = evaluate_fn(server_round, result.arrays) if evaluate_fn else None
    if found is not None:
        metrics = _as_metrics(found)
        logger.info("\tround %d: %s", server_round, dict(metrics))
        result.evaluate_metrics_serverapp[server_round] = metrics


def _as_metrics(found: object) -> MetricRecord:
    """Return the value of an evaluate_fn as Flower metrics; plain dicts and numpy numbers are accepted."""
    if isinstance(found, MetricRecord):
        return found
    try:
        if not isinstance(found, Mapping):
            raise TypeError(f"it is a {type(found).__name__}")
        return MetricRecord({name: v.tolist() if hasattr(v, "tolist") else v for name, v in found.items()})
    except TypeError as error:
        raise ConfigurationError(
            f"evaluate_fn must return None or named numbers, such as MetricRecord({{'accuracy': 0.5}}); got "
            f"{found!r} ({error})."
        ) from error
