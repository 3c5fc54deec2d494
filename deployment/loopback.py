"""Run one of the examples on a real deployment on this machine, in which one node lies.

python -m deployment.loopback --help says how.
"""

import re
import signal
import sys
import time
import tomllib
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from deployment.errors import FederationError
from deployment.federation import Federation
from deployment.namespaces import NamespacedFederation
from deployment.processes import cpu_seconds_for_messages
from solon_fl import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks.registry import ATTACKS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
APPS = ("fashion-mnist", "own-model", "cross-silo")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

program = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

NodeConfig = dict[str, str | int]


class Interrupted(BaseException):
    """A signal came that ends the program; nothing but the cleaning up may catch it."""


@program.command()
def main(
    app: Annotated[str, typer.Argument(help=f"Which example: {', '.join(APPS)}.")] = "fashion-mnist",
    attack: Annotated[str, typer.Option(help='What the liar does; "" for an honest run.')] = "reverse",
    liar: Annotated[str, typer.Option(help="Its registered name. Default: the third node.")] = "",
    spares: Annotated[int, typer.Option(help="Nodes beyond those that the app needs.", min=0)] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds of training.", min=1)] = 4,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE: another setting of the app's pyproject.toml; may be given repeatedly."),
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
        bool, typer.Option("--resident", help="One process computes all messages of a node (fashion-mnist only).")
    ] = False,
    hurry: Annotated[
        bool, typer.Option("--hurry", help="Fork Flower's processes and shorten its waits: rounds of 1 to 2 s.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show all that the server logs.")] = False,
) -> None:
    """Run an example on a Flower deployment on this machine, with a lying node.

    APP is fashion-mnist, own-model or cross-silo.

    Starts a SuperLink with TLS that admits only registered keys, and a SuperNode
    for every node, each registered under a name, such as node-3; then `flwr run`.
    Shows each round's accuracy and who was caught lying, and at the end what the
    server knows of each node. Then stops everything that it started and deletes
    its files; after Ctrl-C and errors too.

    A node takes some 300 MB of memory, and 5 s of CPU time for each message: most
    of it to import Flower and torch in a new process. --resident spares that as on
    machines of your own, for 300 MB a node more. --hurry is for one machine only:
    it changes Flower, and shortens its waits.

    For instance:  python -m deployment.loopback own-model --attack alie --hurry
    """
    try:
        settings = read_settings(app, rounds, [*(setting or []), *(["resident=true"] if resident else [])])
        names = node_names(app, settings, spares)
        check_config(settings, len(names) - spares)
        nodes = node_configs(names, attack, liar or names[:3][-1])
        with make_federation(link, hurry, resident) as federation:
            start_nodes(federation, nodes)
            run_example(federation, app, settings, num_nodes=len(names) - spares, verbose=verbose)
    except (FederationError, ConfigurationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


# What is asked for


def read_settings(app: str, rounds: int, changes: list[str]) -> dict[str, Any]:
    """Return all settings of an app, the changed ones included."""
    if app not in APPS:
        raise FederationError(f"app must be one of {', '.join(APPS)}; got app={app!r}.")
    project = tomllib.loads((EXAMPLES / app / "pyproject.toml").read_text())
    settings: dict[str, Any] = project["tool"]["flwr"]["app"]["config"]
    settings["num-rounds"] = rounds
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in settings:
            raise FederationError(f"setting must be KEY=VALUE, KEY one of {', '.join(settings)}; got {change!r}.")
        kind = type(settings[key])
        try:
            settings[key] = {"true": True, "false": False}[value] if kind is bool else kind(value)
        except KeyError:
            raise FederationError(f"{key} must be true or false; got {value!r}.") from None
        except ValueError:
            raise FederationError(f"{key} must be a number, as {settings[key]} is; got {value!r}.") from None
    return settings


def check_config(settings: dict[str, Any], num_nodes: int) -> None:
    """Raise now what the app would raise when all nodes have been started."""
    SolonConfig(
        num_nodes=num_nodes,
        byzantine=settings["byzantine"],
        compression=settings["compression"],
        verification=settings.get("verification", "algebra"),
        redundancy=settings.get("redundancy", "full"),
        referee=bool(settings.get("referee")),
    )


def node_names(app: str, settings: dict[str, Any], spares: int) -> list[str]:
    """Return the names of the nodes that an app needs with these settings, and of spares."""
    if app == "cross-silo":
        silos = str(settings["silos"]).split(",")
        extra = [spares // len(silos) + (number < spares % len(silos)) for number in range(len(silos))]
        return [
            f"{silo}/{number}"
            for silo, more in zip(silos, extra, strict=True)
            for number in range(1, settings["machines"] + more + 1)
        ]
    return [f"node-{number}" for number in range(1, settings["num-nodes"] + spares + 1)]


def node_configs(names: list[str], attack: str, liar: str) -> dict[str, NodeConfig]:
    """Return what each node's `--node-config` says: its silo, if its name has one, and what the liar is to do."""
    if attack and liar not in names:
        raise FederationError(f"liar must be one of {', '.join(names)}; got liar={liar!r}.")
    if attack and attack not in ATTACKS:
        raise FederationError(f"attack must be one of {', '.join(ATTACKS)}; got attack={attack!r}.")
    nodes: dict[str, NodeConfig] = {}
    for name in names:
        silo, slash, _ = name.partition("/")
        nodes[name] = {"silo": silo} if slash else {}
        if attack and name == liar:
            nodes[name]["attack"] = attack
    return nodes


def make_federation(link: str, hurry: bool, resident: bool) -> Federation:
    """Return a federation on this machine's own network, or with such links."""
    if not link:
        return Federation(hurried=hurry, forking=resident and not hurry)
    bandwidth, _, latency = link.partition(",")
    return NamespacedFederation(bandwidth=bandwidth, latency=latency or "0ms", hurried=hurry)


# What is done


def start_nodes(federation: Federation, nodes: dict[str, NodeConfig]) -> None:
    """Start the nodes, and say who is going to lie."""
    print(f"Starting {len(nodes)} SuperNodes: {', '.join(nodes)}", flush=True)
    federation.start_nodes(nodes)
    for name, config in nodes.items():
        if "attack" in config:
            print(f"{name} is going to lie: {config['attack']}")


def run_example(
    federation: Federation, app: str, settings: dict[str, Any], *, num_nodes: int, verbose: bool = False
) -> None:
    """Run the app on the federation's nodes and print what its server says; raise if the run fails."""
    print(f"Running {app}", flush=True)
    ends: list[float] = []  # of rounds, in seconds
    megabytes = re.compile(r"round \d+: ([\d.]+) MB sent, ([\d.]+) received")
    sent = received = 0.0
    for line in federation.start_run(EXAMPLES / app, settings).checked_lines():
        if line.startswith("round ") and "accuracy" in line:
            ends.append(time.monotonic())
        if traffic := megabytes.match(line):
            sent, received = (1e6 * float(number) for number in traffic.groups())
        if verbose or not ("INFO" in line[:10] or line.startswith(("Using ", "Successfully "))):
            print(line, flush=True)
    if len(ends) > 1:
        print(f"{(ends[-1] - ends[0]) / (len(ends) - 1):.1f} s a round")
    if len(ends) > 2:
        print(f"{(ends[-1] - ends[1]) / (len(ends) - 2):.1f} s a round without the first")
    if used := cpu_seconds_for_messages(federation.tag):
        print(f"{used / (num_nodes * settings['num-rounds']):.1f} s of CPU time a message, on the nodes")
    if isinstance(federation, NamespacedFederation):
        transfer = federation.network.transfer_seconds(
            num_nodes=num_nodes, bytes_out=round(sent), bytes_in=round(received)
        )
        print(f"{transfer:.1f} s of that is transfer, says the simulations' model of a network")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, and let no further signal disturb the cleaning up."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def run_interruptibly(program: typer.Typer) -> None:
    """Run a program that cleans up after itself, also when a signal ends it."""
    for each in SIGNALS:
        signal.signal(each, interrupt)
    try:
        program()
    except Interrupted as interruption:
        print("Interrupted; all processes are stopped.", file=sys.stderr)
        sys.exit(128 + interruption.args[0])


if __name__ == "__main__":
    run_interruptibly(program)
