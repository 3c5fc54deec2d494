"""Runs a Flower app on a real deployment on this machine, in which nodes lie, stall or die.

See python -m deployment.loopback --help.
"""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from deployment.federation import Federation
from deployment.namespaces import NamespacedFederation
from solon_fl import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.launch.apps import FlowerApp, Setting, check_app, read_app, read_node_config
from solon_fl.launch.errors import FederationError, did_you_mean
from solon_fl.launch.faults import Fault, check_faults
from solon_fl.launch.interrupts import run_interruptibly
from solon_fl.launch.options import FaultOption
from solon_fl.launch.processes import cpu_seconds_for_messages
from solon_fl.launch.programs import check_node_name

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ROUNDS = ("num-rounds", "num-server-rounds")  # names of the setting in apps
SHAPE = ("num-nodes", "byzantine", "compression")  # settings by which a Solon app is recognized

program = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

NodeConfig = dict[str, str | int]


@program.command()
def main(
    app: Annotated[
        str, typer.Argument(help="The folder of a Flower app, or the name of one in examples/.")
    ] = "fashion-mnist",
    attack: Annotated[
        str | None,
        typer.Option(
            help='Attack of the liar; "" for an honest run. Default: reverse in examples without --fault, else none.'
        ),
    ] = None,
    liar: Annotated[str, typer.Option(help="Registered name of the liar. Default: the third node.")] = "",
    fault: FaultOption = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Number of SuperNodes. Default: those of the app's settings, and the spares.", min=1),
    ] = None,
    spares: Annotated[int, typer.Option(help="Nodes in addition to those that the app needs.", min=0)] = 2,
    node_config: Annotated[
        list[str] | None,
        typer.Option(
            help="[NODE:]KEY=VALUE: an entry of the node config of one node or of all, in addition to partition-id and "
            "num-partitions. Repeatable."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of training. Default: 4 in examples, else the app's setting.", min=1)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE: change a setting of the app's pyproject.toml. Repeatable."),
    ] = None,
    link: Annotated[
        str,
        typer.Option(
            metavar="RATE[,LATENCY]",
            help="Give each node its own address and link, such as 20mbit or 20mbit,10ms (needs root; "
            "a one-way latency needs netem).",
        ),
    ] = "",
    resident: Annotated[
        bool,
        typer.Option(
            "--resident", help='Compute all messages of a node in one process (apps with a setting "resident").'
        ),
    ] = False,
    hurry: Annotated[
        bool, typer.Option("--hurry", help="Fork Flower's processes and shorten its waits: rounds of 1 to 2 s.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the server's whole log.")] = False,
) -> None:
    """Run a Flower app on a deployment on this machine, with nodes that fail.

    APP is a folder whose pyproject.toml defines a Flower app, or the name of one in
    examples/.

    This starts a SuperLink with TLS that admits only registered keys, starts and
    registers a SuperNode for every node under a name such as node-3, and calls
    `flwr run`. It prints each round's accuracy and the nodes that were caught
    lying, and at the end the server's ledger of the nodes. For an app of your own,
    it prints the server's whole log. In the end, also after Ctrl-C and errors, it
    stops all processes that it started and deletes their files.

    In an example, the third node lies, unless there are faults. --fault makes nodes
    of any app lie, stall (they are suspended, and may resume later) or die (they are
    killed, and may be restarted), from a round or a second on. The faults that
    occurred are listed at the end.

    A node takes some 300 MB of memory, and 5 s of CPU time for each message, most
    of it to import Flower and torch in a new process. --resident saves that time,
    also on machines of your own, for 300 MB more per node. --hurry works on a
    single machine only: it changes Flower and shortens its waits.

    For instance:  python -m deployment.loopback own-model --attack alie --hurry

    python -m deployment.loopback ~/my-app --nodes 5 --fault node-2:stall@3+20s --hurry
    """
    try:
        found = find_app(app)
        is_example = found.folder.parent == EXAMPLES
        changes = [*(setting or []), *(["resident=true"] if resident else [])]
        if rounds is None and is_example and ROUNDS[0] in found.config:
            rounds = 4
        settings = read_settings(found, rounds, changes)
        needed = nodes_needed(settings, nodes)
        check_config(settings, needed)
        names = node_names(settings, needed, spares if nodes is None else nodes - needed)
        for name in names:
            check_node_name(name)
        faults = list(map(Fault.parse, fault or []))
        if attack or (attack is None and is_example and not fault):
            faults.insert(0, Fault(node=liar or names[:3][-1], kind="lie", attack=attack or "reverse", round=1))
        check_faults(faults, names)
        configs = node_configs(names, node_config or [])
        if not is_example:
            check_app(found)
        with make_federation(link, hurry, resident, faults) as federation:
            start_nodes(federation, configs, faults)
            run_app(federation, found, settings, num_nodes=needed, verbose=verbose or not is_example)
            for sentence in federation.faults_that_happened():
                print(sentence)
    except (FederationError, ConfigurationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


# The command's arguments


def find_app(app: str) -> FlowerApp:
    """Return the app in a folder, or the example with this name."""
    examples = sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml"))
    if app in examples:
        return read_app(EXAMPLES / app)
    folder = Path(app).expanduser()
    if not folder.is_dir():
        raise FederationError(
            f"app must be a folder with a pyproject.toml, or one of {', '.join(examples)}; got app={app!r}"
            f"{did_you_mean(app, examples)}"
        )
    return read_app(folder.resolve())


def read_settings(app: FlowerApp, rounds: int | None, changes: list[str]) -> dict[str, Setting]:
    """Return all settings of an app with changes applied; the number of rounds stays if `rounds` is None."""
    if rounds is not None:
        known = [key for key in ROUNDS if key in app.config]
        if not known:
            raise FederationError(
                f"the app must have a setting {' or '.join(ROUNDS)} for rounds={rounds}; got "
                f"{', '.join(app.config) or 'none'}; use --setting instead of --rounds."
            )
        app = replace(app, config={**app.config, known[0]: rounds})
    return app.settings(changes)


def check_config(settings: dict[str, Setting], num_nodes: int) -> None:
    """Raise the errors that a Solon app would raise only after all nodes have been started."""
    if "silos" not in settings and not all(isinstance(settings.get(key), int) for key in SHAPE):
        return
    SolonConfig(
        num_nodes=num_nodes,
        byzantine=settings["byzantine"],  # type: ignore[arg-type]  # SolonConfig checks it, and the next four
        compression=settings["compression"],  # type: ignore[arg-type]
        verification=settings.get("verification", "algebra"),  # type: ignore[arg-type]
        redundancy=settings.get("redundancy", "full"),  # type: ignore[arg-type]
        referee=bool(settings.get("referee")),
    )


def nodes_needed(settings: dict[str, Setting], nodes: int | None) -> int:
    """Return the number of nodes that the settings ask for, or `nodes` if they don't specify it."""
    wanted, machines = settings.get("num-nodes"), settings.get("machines")
    if "silos" in settings and isinstance(machines, int):
        wanted = machines * len(silos_of(settings))
    if not isinstance(wanted, int):
        if nodes is None:
            raise FederationError(
                "nodes must be given, as the app's settings have no num-nodes; got none; add, for instance, --nodes 4."
            )
        return nodes
    if nodes is not None and nodes < wanted:
        raise FederationError(f"nodes must be at least the {wanted} of the app's settings; got nodes={nodes}.")
    return wanted


def silos_of(settings: dict[str, Setting]) -> list[str]:
    """Return the names of the silos, if the app has any."""
    return str(settings["silos"]).split(",") if "silos" in settings else []


def node_names(settings: dict[str, Setting], needed: int, spares: int) -> list[str]:
    """Return the names of the nodes and spares."""
    if not (silos := silos_of(settings)):
        return [f"node-{number}" for number in range(1, needed + spares + 1)]
    return [
        f"{silo}/{number}"
        for place, silo in enumerate(silos)
        for number in range(1, needed // len(silos) + spares // len(silos) + (place < spares % len(silos)) + 1)
    ]


def node_configs(names: list[str], pairs: list[str]) -> dict[str, NodeConfig]:
    """Return the node config of each node: its partition, its silo if it has one, and the pairs."""
    nodes: dict[str, NodeConfig] = {}
    for number, name in enumerate(names):
        silo, slash, _ = name.partition("/")
        nodes[name] = {"partition-id": number, "num-partitions": len(names), **({"silo": silo} if slash else {})}
    for pair in pairs:
        node, colon, rest = pair.partition(":")
        one = bool(colon) and "=" not in node
        if one and node not in nodes:
            raise FederationError(
                f"node-config must be [NODE:]KEY=VALUE, with a NODE among {', '.join(names)}; got {pair!r}"
                f"{did_you_mean(node, names)}"
            )
        for name in [node] if one else names:
            nodes[name] |= read_node_config([rest if one else pair])
    return nodes


def make_federation(link: str, hurry: bool, resident: bool, faults: list[Fault] | None = None) -> Federation:
    """Return a federation on this machine's own network, or with such links."""
    if not link:
        return Federation(hurried=hurry, forking=resident and not hurry, faults=faults or ())
    bandwidth, _, latency = link.partition(",")
    return NamespacedFederation(bandwidth=bandwidth, latency=latency or "0ms", hurried=hurry, faults=faults or ())


# The run


def start_nodes(federation: Federation, nodes: dict[str, NodeConfig], faults: list[Fault]) -> None:
    """Start the nodes, and print which of them are going to fail."""
    print(f"Starting {len(nodes)} SuperNodes: {', '.join(nodes)}", flush=True)
    federation.start_nodes(nodes)
    for each in faults:
        print(f"{each.node} is going to {each.kind}{f': {each.attack}' if each.attack else ''}")


def run_app(
    federation: Federation, app: FlowerApp, settings: dict[str, Setting], *, num_nodes: int, verbose: bool = False
) -> None:
    """Run the app on the federation's nodes and print its server's output; raise if the run fails."""
    print(f"Running {app.folder.name}", flush=True)
    ends: list[float] = []  # times at which rounds ended, in seconds
    megabytes = re.compile(r"round \d+: ([\d.]+) MB sent, ([\d.]+) received")
    sent = received = 0.0
    for line in federation.start_run(app.folder, settings).checked_lines():
        if line.startswith("round ") and "accuracy" in line:
            ends.append(time.monotonic())
        if traffic := megabytes.match(line):
            sent, received = (1e6 * float(number) for number in traffic.groups())
        if verbose or not ("INFO" in line[:10] or line.startswith(("Using ", "Successfully "))):
            print(line, flush=True)
    print(f"{app.folder.name} has completed")
    if len(ends) > 1:
        print(f"{(ends[-1] - ends[0]) / (len(ends) - 1):.1f} s per round")
    if len(ends) > 2:
        print(f"{(ends[-1] - ends[1]) / (len(ends) - 2):.1f} s per round without the first")
    if ends and (used := cpu_seconds_for_messages(federation.tag)):
        print(f"{used / (num_nodes * max(1, len(ends) - 1)):.1f} s of CPU time per message, on the nodes")
    if isinstance(federation, NamespacedFederation):
        transfer = federation.network.transfer_seconds(
            num_nodes=num_nodes, bytes_out=round(sent), bytes_in=round(received)
        )
        print(f"{transfer:.1f} s of that is transfer, according to the simulations' network model")


if __name__ == "__main__":
    run_interruptibly(program)
