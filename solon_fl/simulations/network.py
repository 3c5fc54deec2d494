"""A model of the network and of a round's duration, simple enough to compute by hand."""

import math
from dataclasses import dataclass, replace

from solon_fl.config import DownlinkName
from solon_fl.errors import ConfigurationError

__all__ = ["DELTA_BYTES", "NETWORKS", "Network", "RoundSeconds", "bytes_to_node", "round_seconds"]

DELTA_BYTES = 0.09  # largest patch of one round, as a fraction of the model's bytes (docs/explanation/downlink.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A server and P nodes, each with its own link.

    Parameters
    ----------
    name : str
        Name of the network.
    server_download, server_upload : float
        Rates of the server's link, bit/s.
    node_download, node_upload : float
        Rates of each node's link, bit/s.
    latency : float
        One-way latency, seconds.
    deadline : float
        How long the server waits for a node that it needs and that does not reply, seconds.
    round_overhead : float
        Fixed overhead of a round, seconds: Flower's polling intervals and the start of processes. Default: none.
    byte_overhead : float
        Overhead of each byte sent, summed over all nodes, independent of the links, seconds: the programs at both ends
        store, check and encrypt it. Default: none. ``deployment.clock`` measures both overheads.

    Raises
    ------
    ConfigurationError
        If a rate is not positive, or a time is negative.

    Examples
    --------
    Each of ten nodes receives 1.25 MB and sends 125 kB. Their links have 10 Mbit/s, and the server's has 1 Gbit/s.

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
        """Return the same network with all rates multiplied by a positive factor."""
        return replace(
            self,
            name=f"{factor:g} x {self.name}",
            server_download=factor * self.server_download,
            server_upload=factor * self.server_upload,
            node_download=factor * self.node_download,
            node_upload=factor * self.node_upload,
        )

    def transfer_seconds(self, *, num_nodes: int, bytes_out: int, bytes_in: int) -> float:
        """Return the seconds that it takes to send bytes_out to the nodes and then bytes_in to the server.

        Both are sums over all nodes. Every node sends and receives an equal part, and all links work at the same time.
        Each direction takes ``latency + 8 max(bytes / server rate, bytes / num_nodes / node rate)``.
        """
        down = self.down_seconds(num_nodes=num_nodes, bytes_out=bytes_out)
        _check_not_negative("bytes_in", bytes_in)
        back = max(bytes_in / self.server_download, bytes_in / num_nodes / self.node_upload)
        return down + self.latency + 8 * back

    def down_seconds(self, *, num_nodes: int, bytes_out: int) -> float:
        """Return the part of `transfer_seconds` for sending bytes_out to the nodes."""
        if num_nodes < 1:
            raise ConfigurationError(f"num_nodes must be at least 1; got num_nodes={num_nodes}.")
        _check_not_negative("bytes_out", bytes_out)
        return self.latency + 8 * max(bytes_out / self.server_upload, bytes_out / num_nodes / self.node_download)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSeconds:
    """The duration of a round in seconds, split into consecutive parts.

    Attributes
    ----------
    computation : float
        Computation of the slowest node.
    transfer : float
        Transfer of the model to the nodes and of their replies to the server.
    server : float
        Decoding or aggregation.
    waiting : float
        Waiting for nodes that do not reply.
    overhead : float
        Flower's overhead.
    referee : float
        Computation of the referee, after the replies have arrived.
    """

    computation: float
    transfer: float
    server: float
    waiting: float
    overhead: float = 0.0
    referee: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.computation + self.transfer + self.server + self.waiting + self.overhead + self.referee


def bytes_to_node(downlink: DownlinkName, model_bytes: int, rounds: float = 1.0) -> int:
    """Return the bytes that a node receives in a round to have the current model.

    Parameters
    ----------
    downlink : "full" or "delta"
        Whether the node receives the whole model, or only what changed since its last one.
    model_bytes : int
        Size of the whole model.
    rounds : float
        Rounds since the node last received a model: 1 if it computes in every round. Ignored with "full".

    Returns
    -------
    int
        With "delta", the size of so many rounds' patches, but at most that of the whole model. A node's first round,
        which sends the whole model, is not considered.

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
        The network that carries the messages.
    num_nodes : int
        P, the number of nodes.
    batches_per_node : int
        Batches that the busiest node computes.
    batch_seconds : float
        Seconds that a node takes for one batch.
    bytes_out, bytes_in : int
        Bytes sent to and from all nodes: `RoundReport.bytes_out` and `RoundReport.bytes_in`.
    server_seconds : float
        Measured seconds of the server.
    waited : bool
        Whether the server needed a reply that did not come.
    batches_of_referee : int
        Batches that a referee computes after the nodes, as fast as a node.

    Returns
    -------
    RoundSeconds
        ``computation`` is `batches_per_node` times `batch_seconds`, and ``referee`` likewise. ``waiting`` is the
        network's deadline if `waited`, else 0. ``overhead`` is ``round_overhead`` plus ``byte_overhead`` times all
        bytes.

    Notes
    -----
    The model simplifies: all nodes are equally fast, and nothing overlaps. Flower's overhead is known only where it was
    measured. Without a network's overheads, a round of a real deployment takes longer than this, up to many times.
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


# Two data centres, sites on the internet, and homes. These are round numbers that we chose, not measurements.
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
