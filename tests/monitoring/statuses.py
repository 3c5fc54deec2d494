"""Handmade reports of rounds."""

from collections.abc import Sequence

from solon_fl.strategies import GroupReport, RoundReport


def group(
    number: int,
    nodes: Sequence[int | None] = (1, 2, 3, 4, 5),
    *,
    corrupt: Sequence[int] = (),
    silent: Sequence[int] = (),
    malformed: dict[int, str] | None = None,
) -> GroupReport:
    return GroupReport(
        group=number,
        nodes=tuple(nodes),
        status="corrected" if corrupt else "clean",
        corrupt_nodes=tuple(corrupt),
        silent_nodes=tuple(silent),
        malformed_nodes=malformed or {},
        residual=0.0,
        tolerance=1.0,
        error_bound=0.0,
        losses={1: 0.5},
    )


def report(number: int, groups: Sequence[GroupReport]) -> RoundReport:
    return RoundReport(
        round=number,
        groups=tuple(groups),
        stepped=True,
        bytes_out=2 * 10**6,
        bytes_in=10**6,
        seconds_waiting=1.0,
        seconds_aggregating=0.25,
        seconds_stepping=0.125,
    )
