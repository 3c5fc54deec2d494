"""Explains in words why groups could not be decoded."""

import logging
from collections.abc import Callable

from solon_fl.coding import DecodeStatus
from solon_fl.config import SolonConfig
from solon_fl.errors import GroupFailedError
from solon_fl.strategies.reports import NOT_FINITE, GroupReport, RoundReport

__all__ = ["failed_for_good", "log_failure", "refuse_silence_at_the_start", "why_none"]

DIVERGED = (
    "all nodes that answered sent NaN or inf, and they can't all lie: the training has diverged, or the loss is not "
    "finite for some batch; lower the learning rate, or clip the gradients"
)
REFEREE_DIVERGED = (
    "the referee's gradient holds NaN or inf: the training has diverged, or the loss is not finite for some batch "
    "(lower the learning rate, or clip the gradients), or the referee computes differently from the nodes"
)
NEEDS_EQUAL_BITS = (
    "or not bit for bit (code='exact' needs nodes that compute the same bits: use code='fourier', or find nodes with "
    "other hardware or software with solon_fl.strategies.calibrate)"
)
ABOVE_RTOL = (
    "or they differ by float noise above rtol (measure it with solon_fl.strategies.calibrate), or by a single bit if "
    "verification='digest' and r < 2 s + e + k"
)
WHY_HONEST_NODES_DIFFER = (
    "Usual reasons why honest nodes do not compute the same: random numbers (of numpy, a data loader or dropout) that "
    "do not follow from the task's batches (seed numpy with batch.torch_seed % 2**32); state from earlier rounds, in "
    "context.state (keeps_state=True) or elsewhere, which a node that missed a round lacks; different data; different "
    "versions of the app, torch or solon_fl."
)
IN_PARTS = (
    "; the model is sent in parts (downlink='delta', or frozen weights): your own functions need solon_mod() or "
    "solon_fl.clients.downlink_mod, as in @app.train(mods=[downlink_mod])"
)
logger = logging.getLogger("flwr")


def failed_for_good(group: GroupReport) -> bool:
    """Return whether a group has failed for another reason than absent nodes, which may be back in the next round."""
    for_good = (DecodeStatus.UNDECODABLE, DecodeStatus.DIVERGED)
    return not group.decoded and (group.status in for_good or not group.silent_nodes)


def why_none(report: RoundReport, config: SolonConfig) -> str:
    """Return why no group of a round could be decoded."""
    if all(_has_diverged(group, config) for group in report.groups):
        return f"{DIVERGED}."
    reasons = [reason for group in report.groups for reason in group.malformed_nodes.values()]
    first = f"; the first node's reason: {reasons[0]}." if reasons else "."
    classes = sorted({name for group in report.groups for name in group.failed_classes})
    where = f" (the shares disagree in: {', '.join(classes)})" if classes else ""
    apart = NEEDS_EQUAL_BITS if config.code == "exact" else "or not within rtol"
    return (
        f"more nodes lie than configured, or the nodes of a group do not compute the same, {apart}{where}; the log "
        f"has details{first}"
    )


def _has_diverged(group: GroupReport, config: SolonConfig) -> bool:
    """Return whether honest nodes sent NaN or inf: it was decoded, or all nodes that replied did, more than s."""
    if group.status == DecodeStatus.DIVERGED:
        return True
    asked = {node for node in group.nodes if node is not None}
    not_finite = {node for node, reason in group.malformed_nodes.items() if reason == NOT_FINITE}
    return len(not_finite) > config.byzantine and not_finite == asked - set(group.silent_nodes)


def log_failure(report: GroupReport, config: SolonConfig, label: Callable[[int], str]) -> None:
    """Log that a group has failed and why."""
    if _has_diverged(report, config):
        by_referee = report.referee is not None and report.referee.answered
        logger.error("Group %d failed: %s.", report.group, REFEREE_DIVERGED if by_referee else DIVERGED)
        return
    malformed = list(report.malformed_nodes.items())
    reasons = "; ".join(f"node {label(node)}: {reason}" for node, reason in malformed[:3])
    logger.error(
        "Group %d failed (%s%s): %d silent, %d malformed%s. Either more nodes lie or are missing than configured, "
        "or the nodes of the group do not compute the same, %s. %s Policy: %s.",
        report.group,
        report.status,
        "".join(f", {name}" for name in report.failed_classes),
        len(report.silent_nodes),
        len(report.malformed_nodes),
        f" ({reasons})" if reasons else "",
        NEEDS_EQUAL_BITS if config.code == "exact" else ABOVE_RTOL,
        WHY_HONEST_NODES_DIFFER,
        config.on_group_failure,
    )


def refuse_silence_at_the_start(report: RoundReport, *, in_parts: bool) -> None:
    """Raise GroupFailedError if no node sent anything usable in the first round.

    `in_parts` says whether the model is sent in parts, which may be the reason.
    """
    if report.round == 1 and report.bytes_in == 0:
        reasons = [reason for group in report.groups for reason in group.malformed_nodes.values()]
        first = reasons[0] + IN_PARTS * in_parts if reasons else "none answered within the timeout"
        raise GroupFailedError(
            "no node sent anything usable in the first round, so there is nothing to train with; "
            f"the first node's reason: {first}"
        )
