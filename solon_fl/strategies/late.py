"""Handles replies to earlier rounds: those that arrive late, and those that were announced but never come."""

import math
from collections.abc import Mapping

from flwr.serverapp import Grid

from solon_fl.strategies.fetching import fetcher_of
from solon_fl.strategies.rounds import Run

__all__ = ["collect_late"]

LATE_ROUNDS = 3  # for how many rounds the server looks for a late reply


def collect_late(
    server_round: int, grid: Grid, run: Run, unanswered: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Record nodes that have replied to an earlier round, or have announced a reply that never came.

    Returns those of `unanswered` that may still be answered. Nothing is waited for. Without this, late replies would
    stay in the Grid.
    """
    fetcher = fetcher_of(grid)
    late = fetcher.fetch(list(unanswered), wait=False)
    waiting = {}
    for message_id, asked in unanswered.items():
        asked_round, node_id = asked
        if message_id in late:
            if not late[message_id].has_error():
                run.record_late(node_id)
                run.sender.learn_late(node_id, late[message_id])
        elif fetcher.was_never_sent(message_id, math.inf if run.timeout is None else run.timeout):
            run.record_stall(node_id)
        elif fetcher.is_stuck(message_id) or server_round - asked_round <= LATE_ROUNDS:
            waiting[message_id] = asked
            continue
        fetcher.forget(message_id)
    return waiting
