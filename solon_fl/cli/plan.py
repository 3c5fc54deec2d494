"""`solon-fl plan`: which r and k, before anything is run."""

import json
import math
from collections.abc import Collection
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Annotated, Any, Literal, cast, get_args

import typer
from rich import box
from rich.table import Table

from solon_fl.cli.regrouping import Regrouping
from solon_fl.cli.terminal import console, short
from solon_fl.cli.variants import presupposed, variants_sentence, variants_table
from solon_fl.config import CodeName, Redundancy, SolonConfig, Verification
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import NETWORKS, Network
from solon_fl.simulations.plan.planner import Baseline, Choice, Plan, plan
from solon_fl.simulations.plan.server_time import MeasuredServer

__all__ = ["parse_quantity", "plan_command"]

FASTEST_SHOWN = 5
SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def plan_command(
    nodes: Annotated[int, typer.Option(help="P: nodes in the run.")],
    byzantine: Annotated[int, typer.Option(help="s: nodes of each group that may lie.")],
    model_size: Annotated[str, typer.Option(help="d: entries of the gradient; 11000000, 1.1e7 or 11M.")],
    batch_seconds: Annotated[float, typer.Option(help="Seconds that a node takes for the gradient of one batch.")],
    network: Annotated[str, typer.Option(help=f"Rates and latency: {', '.join(NETWORKS)}.")] = "cluster-1g",
    bandwidth: Annotated[
        str | None, typer.Option(help="Rate of every link, bit/s, instead of the network's: 100M, 2.5G.")
    ] = None,
    latency: Annotated[float | None, typer.Option(help="Seconds one way, instead of the network's.")] = None,
    stragglers: Annotated[int, typer.Option(help="e: nodes of each group that may stay silent.")] = 0,
    code: Annotated[str, typer.Option(help=f"The code: {', '.join(get_args(CodeName))} (the paper's).")] = "fourier",
    rtol: Annotated[float, typer.Option(help="Float noise tolerated between honest nodes.")] = 1e-6,
    verification: Annotated[
        str,
        typer.Option(
            help=f"How lies are told from the truth: {', '.join(get_args(Verification))}, or any, to rank both. With "
            "digest groups may be smaller, or k larger, if all nodes compute the same bits."
        ),
    ] = "algebra",
    redundancy: Annotated[
        str,
        typer.Option(
            help=f"Who of a group computes: {', '.join(get_args(Redundancy))}, or any, to rank both. With reactive "
            "only as many as are enough if they agree: fewer computations and bytes as long as nobody lies, and a "
            "longer round when somebody does."
        ),
    ] = "full",
    liars_in_all: Annotated[
        int | None,
        typer.Option(
            help="b: liars among all nodes. Show how likely some group gets more than s of them if the nodes are "
            "regrouped at random every round."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of the run, with --liars-in-all.")] = 1000,
    risk: Annotated[
        float, typer.Option(help="Probability that you accept, over the whole run, with --liars-in-all.")
    ] = 1e-6,
    threads: Annotated[int, typer.Option(help="Threads of torch while the server's part is measured.")] = 1,
    show_all: Annotated[bool, typer.Option("--all", help="Show every choice, also those without a guarantee.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose group size and compression for your nodes, model and network.

    The server's part is measured on this machine; computation and transfers are computed. At the end it says what
    digests and reactive redundancy would bring; --verification any --redundancy any ranks all there is. For example:

        solon-fl plan --nodes 100 --byzantine 5 --model-size 11M --batch-seconds 0.5 --network home-20m
    """
    regrouping = None if liars_in_all is None else Regrouping(liars=liars_in_all, rounds=rounds, risk=risk)
    if regrouping is not None:
        regrouping.least_byzantine(nodes, 1)  # refuses bad numbers before anything is measured
    make_plan = partial(
        plan,
        num_nodes=nodes,
        byzantine=byzantine,
        dim=_parse_size(model_size),
        batch_seconds=batch_seconds,
        network=_network(network, bandwidth, latency),
        stragglers=stragglers,
        code=cast(CodeName, code),
        rtol=rtol,
        server_seconds=MeasuredServer(byzantine=byzantine, code=cast(CodeName, code), rtol=rtol, threads=threads),
    )
    planned = make_plan(
        verification=cast(Verification | Literal["any"], verification),
        redundancy=cast(Redundancy | Literal["any"], redundancy),
    )
    everything = make_plan(verification="any", redundancy="any")
    shown = planned.choices if show_all else _worth_showing(planned)
    if as_json:
        print(json.dumps(_as_json(planned, everything, shown, regrouping), indent=2, allow_nan=False))
        return
    console.print(_choices_table(planned, shown))
    console.print(_baselines_table(planned))
    for sentence in _sentences(planned):
        console.print(sentence, highlight=False)
    if regrouping is not None:
        console.print(regrouping.table(shown))
        console.print(regrouping.sentence(planned), highlight=False)
    chosen = planned.best if regrouping is None else regrouping.quickest(planned)
    for line in _lines_to_use(chosen, regrouping) if chosen is not None else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    console.print(variants_table(everything))
    console.print(variants_sentence(everything), highlight=False)


def parse_quantity(option: str, text: str) -> float:
    """Return a positive number that may end in k, M or G."""
    digits, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1.0)
    try:
        value = float(digits) * factor
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigurationError(
            f"{option} must be a positive number, with k, M or G behind it if you like; got {option} {text!r}; "
            "write it like 1.1e7 or 11M."
        )
    return value


def _parse_size(text: str) -> int:
    value = parse_quantity("--model-size", text)
    if abs(value - round(value)) > 1e-6 or value < 1:
        raise ConfigurationError(f"--model-size must be a whole number of entries; got --model-size {text!r}.")
    return round(value)


def _network(name: str, bandwidth: str | None, latency: float | None) -> Network:
    if name not in NETWORKS:
        raise ConfigurationError(f"network must be one of {', '.join(NETWORKS)}; got network={name!r}.")
    network = NETWORKS[name]
    if bandwidth is not None:
        rate = parse_quantity("--bandwidth", bandwidth)
        network = replace(
            network,
            name=f"{bandwidth}bit/s links",
            server_download=rate,
            server_upload=rate,
            node_download=rate,
            node_upload=rate,
        )
    return network if latency is None else replace(network, latency=latency)


def _worth_showing(planned: Plan) -> tuple[Choice, ...]:
    """Return the best choice of every group size and the fastest few of all, without those that are void."""
    rows = list(planned.best_of_each_size())
    fast = 0
    for choice in planned.choices:
        if fast == FASTEST_SHOWN:
            break
        if not choice.is_void:
            fast += 1
            if choice not in rows:
                rows.append(choice)
    rows.sort(key=lambda choice: (choice.seconds.total, choice.group_size))
    return tuple(rows)


def _choices_table(planned: Plan, shown: Collection[Choice]) -> Table:
    best = planned.best
    plain = _is_plain(shown)
    table = Table(
        title=f"Seconds a round (P = {planned.num_nodes}, s = {best.byzantine}, d = {planned.dim:,}, "
        f"{planned.network.name})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "r", "k", *(("groups",) if plain else ("di-\ngests", "asked"))):
        table.add_column(heading, justify="right", no_wrap=True)
    _add_cost_columns(table)
    table.add_column("certi-\nficate", justify="right", no_wrap=True)
    for choice in shown:
        void = choice.is_void
        table.add_row(
            "*" if choice is best else "",
            str(choice.group_size),
            str(choice.compression),
            *(
                (str(choice.num_groups),)
                if plain
                else ("yes" if choice.verification == "digest" else "no", str(choice.asked_per_group))
            ),
            *_costs(choice),
            "void" if void else f"{choice.certificate:.0e}",
            style="bold green" if choice is best else "dim" if void else "",
        )
    return table


def _baselines_table(planned: Plan) -> Table:
    table = Table(title="For comparison", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("liars\ntolerated")
    _add_cost_columns(table)
    for baseline in planned.baselines:
        table.add_row(baseline.name, baseline.tolerates, *_costs(baseline))
    return table


def _add_cost_columns(table: Table) -> None:
    for heading in ("batches\na node", "MB a\nnode", "com-\npute", "trans-\nfer", "server", "total"):
        table.add_column(heading, justify="right", no_wrap=True)


def _costs(row: Choice | Baseline) -> tuple[str, ...]:
    seconds = row.seconds
    parts = (seconds.computation, seconds.transfer, seconds.server, seconds.total)
    return (str(row.batches_per_node), short(row.bytes_per_node / 1e6), *map(short, parts))


def _sentences(planned: Plan) -> list[str]:
    best = planned.best
    total = best.seconds.total
    model = planned.network.transfer_seconds(num_nodes=best.num_asked, bytes_out=best.bytes_out, bytes_in=0)
    lines = [
        f"[bold]Best: r = {best.group_size}, k = {best.compression}[/], {short(total)} s a round. "
        f"Whatever the liars do (s = {best.byzantine} in each of {best.num_groups} groups), the gradient is proved to "
        f"be right to {best.certificate:.1g} of its size, the certificate: a bound for the worst lie that passes for "
        "float noise. The attacks that were tried come nowhere near it.",
        f"A node pays {best.batches_per_node} times the computation of no defence and sends "
        f"1/{best.compression} of the gradient. Sending out the model takes {short(model)} s"
        f"{' in every row' if _is_plain(planned.choices) else ''}.",
    ]
    lines += presupposed(best)
    for baseline in planned.baselines:
        other = baseline.seconds.total
        least = "" if baseline.name == "no defence" else "at least "
        longer, shorter = f"{short(other / total)} times as long", f"Solon {short(total / other)} times as long"
        ratio = longer if other >= total else shorter
        lines.append(
            f"{baseline.name.capitalize()} (tolerates {baseline.tolerates}) takes {least}{short(other)} s, {ratio}; "
            f"Solon {_break_even(planned.break_even(baseline))}."
        )
    return lines


def _is_plain(choices: Collection[Choice]) -> bool:
    """Return whether no choice has digests or reactive redundancy."""
    return all((choice.verification, choice.redundancy) == ("algebra", "full") for choice in choices)


def _break_even(factor: float) -> str:
    if factor == 0:
        return "is never faster, whatever the links"
    if factor == math.inf:
        return "is faster, whatever the links"
    return f"is faster on links below {short(factor)} times these rates"


def _lines_to_use(best: Choice, regrouping: Regrouping | None = None) -> list[str]:
    required = {
        "byzantine": best.byzantine,
        "compression": best.compression,
        "group_size": best.group_size,
    }
    defaults = {field.name: field.default for field in fields(SolonConfig)}
    optional = {
        name: value
        for name in ("stragglers", "code", "rtol", "verification", "redundancy")
        if (value := getattr(best, name)) != defaults[name]
    }
    settings: dict[str, Any] = required | optional
    if regrouping is not None and regrouping.liars > best.byzantine:
        settings["regroup"] = "round"
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in settings.items())
    return [
        "Use it:",
        f"  SolonConfig(num_nodes={best.num_nodes}{arguments})",
        f"  solon-fl simulate --nodes {best.num_nodes}{options}",
    ]


def _as_json(
    planned: Plan, everything: Plan, shown: Collection[Choice], regrouping: Regrouping | None
) -> dict[str, Any]:
    """Return the plan as what json can write; the rows are those that the table shows."""
    result: dict[str, Any] = {
        "network": asdict(planned.network),
        "num_nodes": planned.num_nodes,
        "dim": planned.dim,
        "batch_seconds": planned.batch_seconds,
        "best": _row_as_json(planned.best),
        "choices": [_row_as_json(choice) for choice in shown],
        "baselines": [
            _row_as_json(baseline) | {"break_even": _finite(planned.break_even(baseline))}
            for baseline in planned.baselines
        ],
        "variants": [_row_as_json(choice) for choice in everything.best_of_each_variant().values()],
        "thriftiest": _row_as_json(everything.thriftiest),
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


def _row_as_json(row: Choice | Baseline) -> dict[str, Any]:
    result = asdict(row) | {"batches_per_node": row.batches_per_node, "bytes_per_node": row.bytes_per_node}
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
