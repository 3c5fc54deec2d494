"""Aggregating what nodes say of the model: by the median, and never trusting the form of a reply."""

import logging
import math
import statistics
from collections.abc import Iterable
from itertools import islice

from flwr.app import Message, MetricRecord

from solon_fl.strategies.group import one_line

__all__ = ["median_metrics"]

MOST_METRICS = 100  # of one node
logger = logging.getLogger("flwr")


def median_metrics(replies: Iterable[Message], num_nodes: int) -> MetricRecord | None:
    """Return the median of every metric that more than half of num_nodes nodes reported as one finite number.

    None if there is no such metric. The median is within what honest nodes report as long as they are the majority.
    """
    reported: dict[str, list[float]] = {}
    for reply in replies:
        for name, value in _finite_metrics(reply).items():
            reported.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in reported.items() if 2 * len(values) > num_nodes}
    return MetricRecord(dict(medians)) if medians else None


def _finite_metrics(reply: Message) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        if reply.has_content():
            records = reply.content.metric_records.values()
            metrics = (item for record in records for item in record.items())
            for name, value in islice(metrics, MOST_METRICS):
                if isinstance(value, (int, float)) and math.isfinite(value):
                    found[name] = float(value)
    except Exception as error:  # anything may come from a node
        logger.warning("Node %d: metrics ignored: %s", reply.metadata.src_node_id, one_line(str(error)))
    return found
