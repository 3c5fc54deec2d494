"""A plan as JSON."""

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.regrouping import Regrouping
from solon_fl.simulations.plan.verdict import Verdict

__all__ = ["plan_as_json"]


def plan_as_json(
    planned: Plan, verdict: Verdict, shown: Collection[Choice], regrouping: Regrouping | None
) -> dict[str, Any]:
    """Return the verdict, the rows shown, the best choice of each variant and, with regrouping, the probabilities."""
    load = planned.workload
    result: dict[str, Any] = {
        "verdict": {
            "use": _used(verdict.use),
            "sentence": verdict.sentence,
            "lines": [line.strip() for line in verdict.lines],
            "caveats": list(verdict.caveats),
        },
        "network": asdict(load.network),
        "num_nodes": load.num_nodes,
        "dim": load.dim,
        "batch_seconds": load.batch_seconds,
        "best": _row(planned.best),
        "choices": [_row(choice) for choice in shown],
        "baselines": [
            _row(baseline) | {"break_even": _finite(planned.break_even(baseline))} for baseline in planned.baselines
        ],
        "variants": [_row(choice) for choice in planned.best_of_each_variant().values()],
        "thriftiest": _row(planned.thriftiest),
    }
    if regrouping is not None:
        enough = regrouping.enough(planned)
        result["regrouping"] = asdict(regrouping) | {
            "byzantine_needed": None if enough is None else enough[0],
            "group_sizes": [] if enough is None else enough[1],
        }
        for choice, row in zip((planned.best, *shown), (result["best"], *result["choices"]), strict=True):
            row["overflow_in_round"], row["overflow_in_run"] = regrouping.overflow(choice)
    return result


def _used(row: Choice | Baseline | None) -> dict[str, Any] | None:
    return None if row is None else {"strategy": "solon" if isinstance(row, Choice) else row.name} | _row(row)


def _row(row: Choice | Baseline) -> dict[str, Any]:
    result = asdict(row) | {
        "batches_per_node": row.batches_per_node,
        "bytes_per_node": row.bytes_per_node,
        "bytes_to_node": row.bytes_to_node,
    }
    result["seconds"]["total"] = row.seconds.total
    if isinstance(row, Choice):
        result |= {
            "num_groups": row.num_groups,
            "asked_per_group": row.asked_per_group,
            "computations": row.computations,
            "certificate": _finite(row.certificate),
        }
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
