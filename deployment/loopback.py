"""Run a Flower app on a real deployment on this machine, in which nodes lie, stall or die.

python -m deployment.loopback --help says how.
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

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ROUNDS = ("num-rounds", "num-server-rounds")  # what apps call the setting
SHAPE = ("num-nodes", "byzantine", "compression")  # settings by which an app of Solon's is known

program = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

NodeConfig = dict[str, str | int]


@program.command()
def main(
    app: Annotated[
        str, typer.Argument(help="The folder of a Flower app, or the name of one in examples/.")
    ] = "fashion-mnist",
    attack: Annotated[
        str | None,
        typer.Option(help='What the liar does; "" for an honest run. Default in examples, if no --fault: reverse.'),
    ] = None,
    liar: Annotated[str, typer.Option(help="Its registered name. Default: the third node.")] = "",
    fault: FaultOption = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="How many SuperNodes. Default: what the app's settings say, and spares.", min=1),
    ] = None,
    spares: Annotated[int, typer.Option(help="Nodes beyond those that the app needs.", min=0)] = 2,
    node_config: Annotated[
        list[str] | None,
        typer.Option(
            help="[NODE:]KEY=VALUE: what the app is told of a node, or of all, beside partition-id and num-partitions. "
            "Repeatable."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of training. Default: 4 in examples, else what the app says.", min=1)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE: another setting of the app's pyproject.toml. Repeatable."),
    ] = None,
    link: Annotated[
        str,
        typer.Option(
            metavar="RATE[,LATENCY]",
            help="Give each node an address and a link of its own, such as 20mbit or 20mbit,10ms (needs root; "
            "latency, one way, needs netem).",
        ),
    ] = "",
    resident: Annotated[
        bool,
        typer.Option(
            "--resident", help='One process computes all messages of a node (apps with a setting "resident").'
        ),
    ] = False,
    hurry: Annotated[
        bool, typer.Option("--hurry", help="Fork Flower's processes and shorten its waits: rounds of 1 to 2 s.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show all that the server logs.")] = False,
) -> None:
    """Run a Flower app on a deployment on this machine, with nodes that fail.

    APP is a folder whose pyproject.toml has a Flower app, or one of examples/.

    Starts a SuperLink with TLS that admits only registered keys, and a SuperNode
    for every node, each registered under a name, such as node-3; then `flwr run`.
    Shows each round's accuracy and who was caught lying, and at the end what the
    server knows of each node; of an app of your own, all that its server logs.
    Then stops everything that it started and deletes its files; after Ctrl-C and
    errors too.

    In an example the third node lies, unless there are faults. --fault makes nodes of any app lie, stall
    (they are stopped, and may go on later) or die (they are killed, and may be
    started again), from a round or a second on; at the end it says what came of it.

    A node takes some 300 MB of memory, and 5 s of CPU time for each message: most
    of it to import Flower and torch in a new process. --resident spares that as on
    machines of your own, for 300 MB a node more. --hurry is for one machine only:
    it changes Flower, and shortens its waits.

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


# What is asked for


def find_app(app: str) -> FlowerApp:
    """Return the app in a folder, or in the example of that name."""
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
    """Return all settings of an app, the changed ones included; `rounds` None leaves their number."""
    if rounds is not None:
        known = [key for key in ROUNDS if key in app.config]
        if not known:
            raise FederationError(
                f"the app must have a setting {' or '.join(ROUNDS)} for rounds={rounds}; got "
                f"{', '.join(app.config) or 'none'}; change its own with --setting."
            )
        app = replace(app, config={**app.config, known[0]: rounds})
    return app.settings(changes)


def check_config(settings: dict[str, Setting], num_nodes: int) -> None:
    """Raise now what an app of Solon's would raise when all nodes have been started."""
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
    """Return how many nodes the settings ask for; if they don't say, as many as there are to be."""
    wanted, machines = settings.get("num-nodes"), settings.get("machines")
    if "silos" in settings and isinstance(machines, int):
        wanted = machines * len(silos_of(settings))
    if not isinstance(wanted, int):
        if nodes is None:
            raise FederationError(
                "nodes must be given, for the app's settings have no num-nodes; got none; add, for instance, --nodes 4."
            )
        return nodes
    if nodes is not None and nodes < wanted:
        raise FederationError(f"nodes must be at least the {wanted} of the app's settings; got nodes={nodes}.")
    return wanted


def silos_of(settings: dict[str, Setting]) -> list[str]:
    """Return the names of the silos; none if the app has none."""
    return str(settings["silos"]).split(",") if "silos" in settings else []


def node_names(settings: dict[str, Setting], needed: int, spares: int) -> list[str]:
    """Return the names of the nodes, and of spares."""
    if not (silos := silos_of(settings)):
        return [f"node-{number}" for number in range(1, needed + spares + 1)]
    return [
        f"{silo}/{number}"
        for place, silo in enumerate(silos)
        for number in range(1, needed // len(silos) + spares // len(silos) + (place < spares % len(silos)) + 1)
    ]


def node_configs(names: list[str], pairs: list[str]) -> dict[str, NodeConfig]:
    """Return what each node's `--node-config` says: its place among all, its silo if it has one, and the pairs."""
    nodes: dict[str, NodeConfig] = {}
    for number, name in enumerate(names):
        silo, slash, _ = name.partition("/")
        nodes[name] = {"partition-id": number, "num-partitions": len(names), **({"silo": silo} if slash else {})}
    for pair in pairs:
        node, colon, rest = pair.partition(":")
        one = bool(colon) and "=" not in node
        if one and node not in nodes:
            raise FederationError(
                f"node-config must be [NODE:]KEY=VALUE, NODE one of {', '.join(names)}; got {pair!r}"
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


# What is done


def start_nodes(federation: Federation, nodes: dict[str, NodeConfig], faults: list[Fault]) -> None:
    """Start the nodes, and say who is going to fail."""
    print(f"Starting {len(nodes)} SuperNodes: {', '.join(nodes)}", flush=True)
    federation.start_nodes(nodes)
    for each in faults:
        print(f"{each.node} is going to {each.kind}{f': {each.attack}' if each.attack else ''}")


def run_app(
    federation: Federation, app: FlowerApp, settings: dict[str, Setting], *, num_nodes: int, verbose: bool = False
) -> None:
    """Run the app on the federation's nodes and print what its server says; raise if the run fails."""
    print(f"Running {app.folder.name}", flush=True)
    ends: list[float] = []  # of rounds, in seconds
    megabytes = re.compile(r"round \d+: ([\d.]+) MB sent, ([\d.]+) received")
    sent = received = 0.0
    for line in federation.start_run(app.folder, settings).checked_lines():
        if line.startswith("round ") and "accuracy" in line:
            ends.append(time.monotonic())
        if traffic := megabytes.match(line):
            sent, received = (1e6 * float(number) for number in traffic.groups())
        if verbose or not ("INFO" in line[:10] or line.startswith(("Using ", "Successfully "))):
            print(line, flush=True)
    print(f"{app.folder.name} has run to its end")
    if len(ends) > 1:
        print(f"{(ends[-1] - ends[0]) / (len(ends) - 1):.1f} s a round")
    if len(ends) > 2:
        print(f"{(ends[-1] - ends[1]) / (len(ends) - 2):.1f} s a round without the first")
    if ends and (used := cpu_seconds_for_messages(federation.tag)):
        print(f"{used / (num_nodes * max(1, len(ends) - 1)):.1f} s of CPU time a message, on the nodes")
    if isinstance(federation, NamespacedFederation):
        transfer = federation.network.transfer_seconds(
            num_nodes=num_nodes, bytes_out=round(sent), bytes_in=round(received)
        )
        print(f"{transfer:.1f} s of that is transfer, says the simulations' model of a network")


if __name__ == "__main__":
    run_interruptibly(program)
