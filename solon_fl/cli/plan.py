"""`solon-fl plan`: recommends settings before anything is run."""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import typer

from solon_fl.checks import check_one_of
from solon_fl.cli.meanings import CONFIG
from solon_fl.cli.options import Machine
from solon_fl.cli.settings import Keys, SetOption
from solon_fl.cli.terminal import console, set_log_level
from solon_fl.config import DownlinkName, Redundancy, Verification
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import NETWORKS, Network
from solon_fl.simulations.plan.as_json import plan_as_json
from solon_fl.simulations.plan.choices import Choice, Plan
from solon_fl.simulations.plan.planner import plan
from solon_fl.simulations.plan.regrouping import Regrouping
from solon_fl.simulations.plan.server_time import MeasuredServer
from solon_fl.simulations.plan.tables import candidates_tables, choices_table, worth_showing
from solon_fl.simulations.plan.verdict import Verdict, verdict_of
from solon_fl.simulations.plan.workload import Workload

__all__ = ["KEYS", "parse_quantity", "plan_command"]

SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The variants of Solon that are compared."""

    verification: Verification | Literal["any"] = "any"
    redundancy: Redundancy | Literal["any"] = "any"
    downlink: DownlinkName | Literal["any"] = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """A latency that replaces the network's own."""

    latency: float | None = None


KEYS = Keys(
    {
        Workload: {
            "num_nodes": CONFIG["num_nodes"],
            "byzantine": CONFIG["byzantine"],
            "batch_seconds": "Seconds that a node takes for the forward and backward pass of one batch.",
            "stragglers": CONFIG["stragglers"],
            "code": CONFIG["code"],
            "rtol": CONFIG["rtol"],
            "share_bytes": "Bytes of one entry of a share: 4 for float32, 8 for float64.",
            "referee": CONFIG["referee"],
            "model_bytes": "Bytes of the model as sent to one node; none means share_bytes for every entry.",
        },
        Delay: {"latency": "One-way latency in seconds, instead of the network's."},
        Variant: {
            "verification": "How lies are detected; any compares both. digest allows smaller groups or a larger k if "
            "all nodes compute the same bits.",
            "redundancy": "Which nodes of a group compute; any compares both. reactive asks only as many as suffice if "
            "they agree: fewer computations and bytes while nobody lies, and a longer round when somebody does.",
            "downlink": "How nodes receive the model, also with the baselines; any compares both. delta sends what "
            "changed since a node's last round, if nodes keep the model.",
        },
        Regrouping: {
            "rounds": "Rounds of the run, with --liars-in-all.",
            "risk": "Probability that you accept, over the whole run, with --liars-in-all.",
        },
        Machine: {"threads": "Threads of torch while the server's work is measured."},
    },
    options=("num_nodes", "byzantine", "batch_seconds", "referee"),
)


def plan_command(
    nodes: Annotated[int, typer.Option(help=CONFIG["num_nodes"])],
    byzantine: Annotated[int, typer.Option(help=CONFIG["byzantine"])],
    model_size: Annotated[str, typer.Option(help="d: trainable parameters of the model, such as 11000000 or 11M.")],
    batch_seconds: Annotated[
        float, typer.Option(help="Seconds that a node takes for the forward and backward pass of one batch.")
    ],
    network: Annotated[
        str, typer.Option(help=f"Rates and latency of the links: {', '.join(NETWORKS)}.")
    ] = "cluster-1g",
    bandwidth: Annotated[
        str | None, typer.Option(help="Rate of every link in bit/s, instead of the network's, such as 100M or 2.5G.")
    ] = None,
    referee: Annotated[bool, typer.Option("--referee", help=CONFIG["referee"])] = False,
    liars_in_all: Annotated[
        int | None,
        typer.Option(
            help="b: liars among all nodes. Show the probability that some group gets more than s of them if nodes are "
            "regrouped at random every round."
        ),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every choice, even without a guarantee.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    settings: SetOption = None,
) -> None:
    """Say whether to use Solon for your nodes, model and network, and with which settings.

    The output starts with the verdict. Its requirements follow, and then the alternatives that it was compared with.
    The server's seconds are measured on this machine. Those of nodes and links are computed. Exclude what you can't use
    with --set: verification=algebra if nodes don't compute the same bits, redundancy=full if many rounds have faults,
    downlink=full if nodes can't keep the model. For example:

        solon-fl plan --nodes 100 --byzantine 5 --model-size 11M --batch-seconds 0.5 --network home-20m
    """
    set_log_level(verbose=False)
    given = {"num_nodes": nodes, "byzantine": byzantine, "batch_seconds": batch_seconds, "referee": referee or None}
    values = KEYS.read(settings, given)
    if liars_in_all is None and values[Regrouping]:
        name, value = next(iter(values[Regrouping].items()))
        raise ConfigurationError(
            f"{name} is for regrouped nodes, and needs --liars-in-all; got --set {name}={value} without it; add "
            f"--liars-in-all, or leave out {name}."
        )
    regrouping = None if liars_in_all is None else Regrouping(liars=liars_in_all, **values[Regrouping])
    if regrouping is not None:
        regrouping.check(nodes)
    workload = Workload(
        dim=_parse_size(model_size), network=_network(network, bandwidth, **values[Delay]), **values[Workload]
    )
    server = MeasuredServer.of(workload, **values[Machine])
    planned = plan(workload, server_seconds=server, **{**asdict(Variant()), **values[Variant]})
    verdict = verdict_of(planned, regrouping)
    shown = planned.choices if show_all else worth_showing(planned, verdict.use)
    if as_json:
        print(json.dumps(plan_as_json(planned, verdict, shown, regrouping), indent=2, allow_nan=False))
    else:
        _print(planned, verdict, shown, regrouping)


def _print(planned: Plan, verdict: Verdict, shown: tuple[Choice, ...], regrouping: Regrouping | None) -> None:
    console.print(verdict.sentence, style="bold", highlight=False, markup=False)
    for line in verdict.lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for caveat in verdict.caveats:
        console.print(f"- {caveat}", highlight=False, markup=False)
    for table in candidates_tables(planned, verdict.use):
        console.print(table)
    console.print(choices_table(planned, shown, verdict.use))
    if regrouping is not None:
        console.print(regrouping.table(planned.workload, shown))
        if verdict.use is not None:
            console.print(regrouping.sentence(planned), highlight=False, markup=False)


def parse_quantity(option: str, text: str) -> float:
    """Return a positive number that may end in k, M or G."""
    digits, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1.0)
    try:
        value = float(digits) * factor
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigurationError(
            f"{option} must be a positive number, optionally followed by k, M or G; got {option} {text!r}; write it "
            "like 1.1e7 or 11M."
        )
    return value


def _parse_size(text: str) -> int:
    value = parse_quantity("--model-size", text)
    if abs(value - round(value)) > 1e-6 or value < 1:
        raise ConfigurationError(f"--model-size must be a whole number of entries; got --model-size {text!r}.")
    return round(value)


def _network(name: str, bandwidth: str | None, latency: float | None = None) -> Network:
    check_one_of("network", name, NETWORKS)
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
