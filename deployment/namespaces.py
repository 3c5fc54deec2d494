"""A deployment in which each node has its own link, with a limited rate and a latency. It needs Linux and root."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

from deployment.federation import SUPERLINK, Federation
from solon_fl.launch.errors import FederationError
from solon_fl.launch.faults import Fault
from solon_fl.simulations.network import Network

__all__ = ["NamespacedFederation"]

SUBNET = "10.203.77"  # of the nodes; private, and most likely not in use on this machine
UNLIMITED = 1e11  # bit/s


class NamespacedFederation(Federation):
    """A federation in which each SuperNode has a network namespace with its own address and link.

    A bridge connects them with the SuperLink, whose own link is unlimited.

    Parameters
    ----------
    bandwidth : str
        Rate of each node's link in each direction, in the notation of ``tc``: "20mbit".
    latency : str
        One-way latency, in the notation of ``tc``: "10ms". Any value except "0ms" needs a kernel with netem.
    hurried, faults
        See `Federation`.

    Attributes
    ----------
    network : Network
        The same network for the simulations' model of a round.
    """

    def __init__(self, *, bandwidth: str, latency: str, hurried: bool = False, faults: Sequence[Fault] = ()) -> None:
        super().__init__(host=f"{SUBNET}.1", hurried=hurried, faults=faults)
        self._bandwidth, self._latency = bandwidth, latency
        rate = _number(bandwidth, "bandwidth", {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9})
        self.network = Network(
            name="namespaces",
            server_download=UNLIMITED,
            server_upload=UNLIMITED,
            node_download=rate,
            node_upload=rate,
            latency=_number(latency, "latency", {"us": 1e-6, "ms": 1e-3, "s": 1.0}),
            deadline=0.0,
        )
        self._bridge = f"solon{self.tag[:6]}"
        self._namespaces: dict[str, str] = {}  # by the name of the node

    def __enter__(self) -> Self:
        if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
            raise FederationError("nodes with their own links need root and the commands ip and tc (Debian: iproute2).")
        try:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "address", "add", f"{self.host}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
        except BaseException:
            self._remove_network()
            raise
        return super().__enter__()

    def close(self) -> None:
        """Kill everything, then delete the folder and the network."""
        super().close()
        self._remove_network()

    def _namespace(self, name: str) -> str:
        if name == SUPERLINK:
            return ""
        if name not in self._namespaces:
            self._add_namespace(name)
        return self._namespaces[name]

    def _add_namespace(self, name: str) -> None:
        number = len(self._namespaces) + 1
        namespace = f"{self._bridge}-{number}"
        outside, inside = f"{self._bridge}o{number}", f"{self._bridge}i{number}"
        self._namespaces[name] = namespace
        _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", namespace)
        _run("ip", "link", "set", outside, "master", self._bridge)
        _run("ip", "link", "set", outside, "up")
        within = ["ip", "netns", "exec", namespace]
        _run(*within, "ip", "address", "add", f"{SUBNET}.{number + 1}/24", "dev", inside)
        _run(*within, "ip", "link", "set", inside, "up")
        _run(*within, "ip", "link", "set", "lo", "up")
        # Each end limits the data that it sends: the outside the node's downloads, the inside its uploads.
        _run("tc", "qdisc", "add", "dev", outside, "root", *self._limit())
        _run(*within, "tc", "qdisc", "add", "dev", inside, "root", *self._limit())

    def _limit(self) -> list[str]:
        if self.network.latency:
            return ["netem", "delay", self._latency, "rate", self._bandwidth, "limit", "100000"]
        # The kernel refills the token bucket 100 to 1000 times a second.
        burst = max(32_000, round(self.network.node_upload / 8 / 100))
        return ["tbf", "rate", self._bandwidth, "burst", f"{burst}b", "latency", "400ms"]

    def _remove_network(self) -> None:
        for namespace in self._namespaces.values():
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)  # deletes its links, too
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True)


def _number(text: str, name: str, units: dict[str, float]) -> float:
    """Parse a number with one of these units, and return it in the base unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", text)
    if match is None or match[2] not in units:
        raise FederationError(f"{name} must be a number with one of {', '.join(units)}; got {name}={text!r}.")
    return float(match[1]) * units[match[2]]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if "qdisc kind is unknown" in done.stderr:
        raise FederationError(
            f"this kernel has no {command[command.index('root') + 1]}; without netem, leave out the latency."
        )
    if done.returncode:
        raise FederationError(f"{' '.join(command)} failed: {done.stderr.strip()}")
