"""A model of the network and of a round's duration, simple enough to compute by hand."""

import math
from dataclasses import dataclass, replace

from solon_fl.config import DownlinkName
from solon_fl.errors import ConfigurationError

__all__ = ["DELTA_BYTES", "NETWORKS", "Network", "RoundSeconds", "bytes_to_node", "round_seconds"]

DELTA_BYTES = 0.09  # of the model's bytes: what the patch of one round takes at most (docs/explanation/downlink.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A server and P nodes, each with a link of its own.

    Parameters
    ----------
    name : str
        What to call it.
    server_download, server_upload : float
        Rates of the server's link, bit/s.
    node_download, node_upload : float
        Rates of each node's link, bit/s.
    latency : float
        One way, seconds.
    deadline : float
        How long the server waits for a node that it needs and that does not answer, seconds.
    round_overhead : float
        Of a round, whatever it sends, seconds: Flower's waits between two looks for messages, and the starting of
        processes. Default: none.
    byte_overhead : float
        For each byte sent, summed over all nodes, whatever the links, seconds: the programs at both ends store, check
        and encrypt it. Default: none. `deployment.clock` measures both.

    Raises
    ------
    ConfigurationError
        If a rate is not positive, or a time is negative.

    Examples
    --------
    Ten nodes are sent 1.25 MB each and send 125 kB each, over links of 10 Mbit/s and a server of 1 Gbit/s.

    >>> network = Network(
    ...     name="office",
    ...     server_download=1e9,
    ...     server_upload=1e9,
    ...     node_download=1e7,
    ...     node_upload=1e7,
    ...     latency=0.25,
    ...     deadline=60,
    ... )
    >>> network.transfer_seconds(num_nodes=10, bytes_out=12_500_000, bytes_in=1_250_000)
    1.6
    """

    name: str
    server_download: float
    server_upload: float
    node_download: float
    node_upload: float
    latency: float
    deadline: float
    round_overhead: float = 0.0
    byte_overhead: float = 0.0

    def __post_init__(self) -> None:
        for name in ("server_download", "server_upload", "node_download", "node_upload"):
            rate = getattr(self, name)
            if not 0 < rate < math.inf:
                raise ConfigurationError(f"{name} must be a positive number of bit/s; got {name}={rate!r}.")
        for name in ("latency", "deadline", "round_overhead", "byte_overhead"):
            _check_not_negative(name, getattr(self, name))

    def scaled(self, factor: float) -> "Network":
        """Return the same network with all rates times a positive factor."""
        return replace(
            self,
            name=f"{factor:g} x {self.name}",
            server_download=factor * self.server_download,
            server_upload=factor * self.server_upload,
            node_download=factor * self.node_download,
            node_upload=factor * self.node_upload,
        )

    def transfer_seconds(self, *, num_nodes: int, bytes_out: int, bytes_in: int) -> float:
        """Return the seconds of sending bytes_out to the nodes and then bytes_in to the server, summed over all nodes.

        Every node sends and receives an equal part, and all links work at the same time. Each direction takes
        latency + 8 max(bytes / server rate, bytes / num_nodes / node rate).
        """
        down = self.down_seconds(num_nodes=num_nodes, bytes_out=bytes_out)
        _check_not_negative("bytes_in", bytes_in)
        back = max(bytes_in / self.server_download, bytes_in / num_nodes / self.node_upload)
        return down + self.latency + 8 * back

    def down_seconds(self, *, num_nodes: int, bytes_out: int) -> float:
        """Return the part of `transfer_seconds` that sending bytes_out to the nodes takes."""
        if num_nodes < 1:
            raise ConfigurationError(f"num_nodes must be at least 1; got num_nodes={num_nodes}.")
        _check_not_negative("bytes_out", bytes_out)
        return self.latency + 8 * max(bytes_out / self.server_upload, bytes_out / num_nodes / self.node_download)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSeconds:
    """How the seconds of a round are spent, one part after the other.

    Attributes
    ----------
    computation : float
        Of the slowest node.
    transfer : float
        Of the model to the nodes and their answers to the server.
    server : float
        Of decoding or aggregating.
    waiting : float
        For nodes that do not answer.
    overhead : float
        Of Flower.
    referee : float
        Of the referee, who computes when the answers are there.
    """

    computation: float
    transfer: float
    server: float
    waiting: float
    overhead: float = 0.0
    referee: float = 0.0

    @property
    def total(self) -> float:
        """Their sum."""
        return self.computation + self.transfer + self.server + self.waiting + self.overhead + self.referee


def bytes_to_node(downlink: DownlinkName, model_bytes: int, rounds: float = 1.0) -> int:
    """Return the bytes that a node is sent in a round so that it has the model.

    Parameters
    ----------
    downlink : "full" or "delta"
        Whether it is sent the whole model, or what changed since it had one.
    model_bytes : int
        Of the whole model.
    rounds : float
        Since it had a model: 1 if it computes in every round. Without effect with "full".

    Returns
    -------
    int
        With "delta" the patches of so many rounds, but never more than the whole model, which every node is sent in its
        first round.

    Examples
    --------
    >>> bytes_to_node("full", 44_000_000), bytes_to_node("delta", 44_000_000), bytes_to_node("delta", 44_000_000, 30)
    (44000000, 3960000, 44000000)
    """
    _check_not_negative("model_bytes", model_bytes)
    _check_not_negative("rounds", rounds)
    return model_bytes if downlink == "full" else min(model_bytes, math.ceil(DELTA_BYTES * rounds * model_bytes))


def round_seconds(
    network: Network,
    *,
    num_nodes: int,
    batches_per_node: int,
    batch_seconds: float,
    bytes_out: int,
    bytes_in: int,
    server_seconds: float,
    waited: bool,
    batches_of_referee: int = 0,
) -> RoundSeconds:
    """Return how long a round takes on a network, part by part.

    Parameters
    ----------
    network : Network
        Carries the messages.
    num_nodes : int
        P.
    batches_per_node : int
        Batches that the busiest node computes.
    batch_seconds : float
        Of one batch on one node.
    bytes_out, bytes_in : int
        Bytes really sent, over all nodes: `RoundReport.bytes_out` and `RoundReport.bytes_in`.
    server_seconds : float
        Measured.
    waited : bool
        Whether the server needed an answer that did not come.
    batches_of_referee : int
        Batches that a referee computes, as fast as a node, after the nodes.

    Returns
    -------
    RoundSeconds
        computation is batches_per_node times batch_seconds, and referee likewise; waiting is the network's deadline if
        `waited`, else 0; and overhead round_overhead plus byte_overhead times all bytes.

    Notes
    -----
    Differs from reality: nodes are equally fast, and nothing overlaps. What Flower takes is known only where it was
    measured; without a network's overheads a round on a real deployment is longer than this, up to many times.
    """
    for name, value in (
        ("batches_per_node", batches_per_node),
        ("batches_of_referee", batches_of_referee),
        ("batch_seconds", batch_seconds),
        ("server_seconds", server_seconds),
    ):
        _check_not_negative(name, value)
    return RoundSeconds(
        computation=batches_per_node * batch_seconds,
        transfer=network.transfer_seconds(num_nodes=num_nodes, bytes_out=bytes_out, bytes_in=bytes_in),
        server=server_seconds,
        waiting=network.deadline if waited else 0.0,
        referee=batches_of_referee * batch_seconds,
        overhead=network.round_overhead + network.byte_overhead * (bytes_out + bytes_in),
    )


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a number >= 0; got {name}={value!r}.")


def _alike(name: str, rate: float, latency: float) -> Network:
    return Network(
        name=name,
        server_download=rate,
        server_upload=rate,
        node_download=rate,
        node_upload=rate,
        latency=latency,
        deadline=10.0,
    )


# Two data centres, sites on the internet, and homes. These are round numbers of our choice, not measurements.
NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _alike("cluster-1g", 1e9, latency=1e-4),
        _alike("cluster-10g", 1e10, latency=1e-4),
        Network(
            name="wan-100m",
            server_download=1e9,
            server_upload=1e9,
            node_download=1e8,
            node_upload=1e8,
            latency=0.02,
            deadline=60.0,
        ),
        Network(
            name="home-20m",
            server_download=1e9,
            server_upload=1e9,
            node_download=1e8,
            node_upload=2e7,
            latency=0.03,
            deadline=60.0,
        ),
    )
}
