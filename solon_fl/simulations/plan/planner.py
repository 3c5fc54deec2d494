"""Which group size r and compression k make a round shortest, and what that is worth."""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from solon_fl.checks import check_one_of
from solon_fl.coding.digests import DIGEST_SIZE
from solon_fl.config import Redundancy, Verification
from solon_fl.simulations.network import RoundSeconds, round_seconds
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan, nodes_asked
from solon_fl.simulations.plan.server_time import Kind, MeasuredServer, ServerSeconds
from solon_fl.simulations.plan.workload import Workload

__all__ = ["plan"]

Option = TypeVar("Option", bound=str)

# Bytes a second of one thread (AMD EPYC): at d = 11M, r = 20 and k = 6..15, all digests took 0.14 to 0.26 s.
HASHED = 1e9  # of shares
ENCODED = 1e10  # of the gradient, read once for every share


def plan(
    workload: Workload,
    *,
    verification: Verification | Literal["any"] = "algebra",
    redundancy: Redundancy | Literal["any"] = "full",
    server_seconds: ServerSeconds | None = None,
) -> Plan:
    """Return all admissible group sizes and compressions, and what a round of each takes.

    Parameters
    ----------
    workload : Workload
        Nodes, gradient and network.
    verification : "algebra", "digest" or "any"
        Of the `SolonConfig`; "any" ranks the choices of both.
    redundancy : "full", "reactive" or "any"
        Likewise.
    server_seconds : callable, optional
        (kind, num_nodes, group_size, compression, dim) -> the server's seconds in one round; kind is "solon" or the
        name of a baseline. Default: `MeasuredServer`.

    Raises
    ------
    ConfigurationError
        If no group size is admissible (the message says what to change).

    Notes
    -----
    Admissible: r divides P, 2 s + e + k <= r (with digests max(2 s + 1, s + k) + e <= r), and r <= 128. All schemes
    process P batches a round, as in the paper.

    Digests: every reply carries 32 r bytes more; a node encodes and hashes all r shares once a round, and the server
    hashes those that arrive, at rates that were measured on one machine (`HASHED`, `ENCODED`).

    Redundancy "reactive" is planned for rounds in which all who are asked answer and agree: s + k + e nodes of a
    group (with digests max(s + 1, k) + e) get the model, compute r batches each, and send a share. A round in which
    they don't takes the computation twice, and sends what full redundancy does. The server's seconds are those of full
    redundancy, and no less with digests, though it has fewer shares to decode and no liars to locate.

    The baselines, per node:

    - "no defence" is an average: one batch, the whole gradient.
    - "draco-repetition": groups of 2 s + e + 1 nodes or more, as many and as equal as possible, in which
      every node computes the batches of all and sends the whole gradient; tolerates s liars a group, like Solon.
    - "draco-cyclic": 2 s + e + 1 batches and twice the gradient's bytes (complex numbers); tolerates s liars among
      ALL nodes, which is less.

    Examples
    --------
    >>> from solon_fl.simulations.network import NETWORKS
    >>> workload = Workload(
    ...     num_nodes=20, byzantine=2, dim=1_000_000, batch_seconds=0.1, network=NETWORKS["home-20m"]
    ... )
    >>> planned = plan(workload, server_seconds=lambda *_: 0.0)
    >>> planned.best.group_size, planned.best.compression
    (10, 6)

    References
    ----------
    Chen et al., arXiv:2110.01595: r >= 2 s + k. Chen et al., "DRACO", ICML 2018: both Draco schemes.
    """
    sizes = workload.group_sizes()
    verifications: tuple[Verification, ...] = _wanted("verification", verification, get_args(Verification))
    redundancies: tuple[Redundancy, ...] = _wanted("redundancy", redundancy, get_args(Redundancy))
    reckoning = _Reckoning(workload, server_seconds or MeasuredServer.of(workload))
    choices = [
        reckoning.choice(verification, redundancy, size, compression)
        for verification in verifications
        for redundancy in redundancies
        for size in sizes
        for compression in range(1, _largest_compression(workload, verification, size) + 1)
    ]
    return Plan(
        workload=workload,
        choices=tuple(sorted(choices, key=lambda choice: (choice.seconds.total, choice.group_size))),
        baselines=reckoning.baselines(),
    )


@dataclass(frozen=True, slots=True)
class _Reckoning:
    """What a row costs."""

    workload: Workload
    server_seconds: ServerSeconds

    def choice(self, verification: Verification, redundancy: Redundancy, size: int, compression: int) -> Choice:
        load = self.workload
        asked = (
            load.num_nodes
            // size
            * nodes_asked(verification, redundancy, load.byzantine, compression, load.stragglers, size)
        )
        share = -(-load.dim // compression) * load.share_bytes
        bytes_in = asked * share
        node_seconds, server_seconds = 0.0, self.server_seconds("solon", load.num_nodes, size, compression, load.dim)
        if verification == "digest":
            node_seconds = size * (share / HASHED + load.dim * load.share_bytes / ENCODED)
            server_seconds += bytes_in / HASHED
            bytes_in += asked * DIGEST_SIZE * size
        return Choice(
            num_nodes=load.num_nodes,
            byzantine=load.byzantine,
            stragglers=load.stragglers,
            group_size=size,
            compression=compression,
            code=load.code,
            rtol=load.rtol,
            verification=verification,
            redundancy=redundancy,
            bytes_out=asked * load.bytes_of_model,
            bytes_in=bytes_in,
            seconds=self._seconds(asked, size, bytes_in, server_seconds, node_seconds),
        )

    def baselines(self) -> tuple[Baseline, ...]:
        load = self.workload
        smallest = load.smallest_group
        repeated = -(-load.num_nodes // (load.num_nodes // smallest))  # the largest group of Draco's repetition code
        return (
            self._baseline("no defence", "none", size=1, batches=1, vectors=1),
            self._baseline("draco-repetition", f"{load.byzantine} a group", size=repeated, batches=repeated, vectors=1),
            self._baseline(
                "draco-cyclic", f"{load.byzantine} in all", size=load.num_nodes, batches=smallest, vectors=2
            ),
        )

    def _baseline(self, name: Kind, tolerates: str, *, size: int, batches: int, vectors: int) -> Baseline:
        load = self.workload
        bytes_in = vectors * load.num_nodes * load.dim * load.share_bytes
        server_seconds = self.server_seconds(name, load.num_nodes, size, 1, load.dim)
        return Baseline(
            name=name,
            tolerates=tolerates,
            num_nodes=load.num_nodes,
            group_size=size,
            batches_per_node=batches,
            bytes_out=load.num_nodes * load.bytes_of_model,
            bytes_in=bytes_in,
            seconds=self._seconds(load.num_nodes, batches, bytes_in, server_seconds),
        )

    def _seconds(
        self, asked: int, batches: int, bytes_in: int, server_seconds: float, node_seconds: float = 0.0
    ) -> RoundSeconds:
        seconds = round_seconds(
            self.workload.network,
            num_nodes=asked,
            batches_per_node=batches,
            batch_seconds=self.workload.batch_seconds,
            bytes_out=asked * self.workload.bytes_of_model,
            bytes_in=bytes_in,
            server_seconds=server_seconds,
            waited=False,
        )
        return replace(seconds, computation=seconds.computation + node_seconds)


def _largest_compression(workload: Workload, verification: Verification, size: int) -> int:
    """Return the largest k for a group size that is admissible, 2 s + e + 1 or more."""
    s, e = workload.byzantine, workload.stragglers
    return size - e - (s if verification == "digest" else 2 * s)


def _wanted(name: str, value: Option | Literal["any"], allowed: tuple[Option, ...]) -> tuple[Option, ...]:
    """Return what an option stands for, all if it is "any"."""
    check_one_of(name, value, (*allowed, "any"))
    return tuple(option for option in allowed if value in (option, "any"))
