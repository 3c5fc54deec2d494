"""Computes the duration of a round for every group size r and compression k, and for the baselines."""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from solon_fl.checks import check_one_of
from solon_fl.coding.digests import DIGEST_SIZE
from solon_fl.config import DownlinkName, Redundancy, Verification
from solon_fl.simulations.network import DELTA_BYTES, RoundSeconds, bytes_to_node, round_seconds
from solon_fl.simulations.plan.aggregating import AGGREGATORS, least_nodes
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan, Variant, nodes_asked
from solon_fl.simulations.plan.server_time import Kind, MeasuredServer, ServerSeconds
from solon_fl.simulations.plan.workload import Workload

__all__ = ["plan"]

Option = TypeVar("Option", bound=str)

# Bytes per second of one thread (AMD EPYC). At d = 11M, r = 20 and k = 6..15, all digests took 0.14 to 0.26 s.
HASHED = 1e9  # of shares
ENCODED = 1e10  # of the gradient, read once for every share


def plan(
    workload: Workload,
    *,
    verification: Verification | Literal["any"] = "algebra",
    redundancy: Redundancy | Literal["any"] = "full",
    downlink: DownlinkName | Literal["any"] = "full",
    server_seconds: ServerSeconds | None = None,
) -> Plan:
    """Return all admissible group sizes and compressions, with the duration of a round of each.

    Parameters
    ----------
    workload : Workload
        Nodes, gradient and network.
    verification : "algebra", "digest" or "any"
        As in `SolonConfig`. "any" ranks the choices of both.
    redundancy : "full", "reactive" or "any"
        Likewise.
    downlink : "full", "delta" or "any"
        Likewise. Also applies to the baselines.
    server_seconds : callable, optional
        Called with (kind, num_nodes, group_size, compression, dim), returns the server's seconds in one round. The kind
        is "solon", the name of a baseline, "patch made", or "patch applied" (which nodes do). Default:
        `MeasuredServer`.

    Raises
    ------
    ConfigurationError
        If no group size is admissible. The message says what to change.

    Notes
    -----
    A choice is admissible if r divides P, 2 s + e + k <= r (with digests, max(2 s + 1, s + k) + e <= r), and r <= 128.
    With a referee, s + e + k <= r is enough (with digests, max(s + 1, k) + e <= r). All schemes process P batches a
    round, as in the paper.

    A referee computes as fast as a node. It computes only in rounds in which it is asked about a group: the group's r
    batches, after all nodes.

    With digests, every reply carries 32 r more bytes. A node encodes and hashes all r shares once a round, and the
    server hashes those that arrive. Their rates were measured on one machine (``HASHED``, ``ENCODED``).

    Redundancy "reactive" is planned for rounds in which all nodes that are asked reply and agree: s + k + e nodes of a
    group (with digests, max(s + 1, k) + e) receive the model, compute r batches each, and send a share. A round in
    which they don't takes twice the computation, and sends as many bytes as full redundancy. The server's seconds are
    those of full redundancy, also with digests, although it decodes fewer shares and has no liars to locate.

    With downlink "delta", a node receives a patch for every round since it was last asked, but at most the whole model
    (`bytes_to_node`). With redundancy "reactive", these rounds are on average r divided by the number of nodes asked.
    The server makes one patch a round, and a node applies those that it receives. The first round, which sends the
    whole model, is left out.

    The baselines are planned with each downlink:

    - "no defence" averages: a node computes one batch and sends the whole gradient.
    - "draco-repetition" forms groups of at least 2 s + e + 1 nodes, as many and as equal as possible. A node computes
      the batches of its whole group and sends the whole gradient. It tolerates s liars in each group, like Solon.
    - "draco-cyclic": a node computes 2 s + e + 1 batches and sends twice the gradient's bytes (complex numbers). It
      tolerates s liars among all nodes, which is weaker. Both Draco schemes are left out if there are fewer than
      2 s + e + 1 nodes.
    - "signum", "multikrum" and "bulyan": a node computes one batch and sends one bit per entry (Signum) or the whole
      gradient. They estimate the gradient, and are told that s of all nodes lie. They are left out if there are too few
      nodes for so many liars.

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
    downlinks: tuple[DownlinkName, ...] = _wanted("downlink", downlink, get_args(DownlinkName))
    reckoning = _Reckoning(workload, server_seconds or MeasuredServer.of(workload))
    choices = [
        reckoning.choice((verification, redundancy, downlink), size, compression)
        for verification in verifications
        for redundancy in redundancies
        for downlink in downlinks
        for size in sizes
        for compression in range(1, _largest_compression(workload, verification, size) + 1)
    ]
    return Plan(
        workload=workload,
        choices=tuple(sorted(choices, key=lambda choice: (choice.seconds.total, choice.group_size))),
        baselines=tuple(row for downlink in downlinks for row in reckoning.baselines(downlink)),
    )


@dataclass(frozen=True, slots=True)
class _Reckoning:
    """Computes the costs of a row."""

    workload: Workload
    server_seconds: ServerSeconds

    def choice(self, variant: Variant, size: int, compression: int) -> Choice:
        load = self.workload
        verification, redundancy, downlink = variant
        asked = nodes_asked(verification, redundancy, load.byzantine, compression, load.stragglers, size)
        num_groups = load.num_nodes // size
        share = -(-load.dim // compression) * load.share_bytes
        reply, node_seconds = share, 0.0
        server_seconds = self.server_seconds("solon", load.num_nodes, size, compression, load.dim)
        if verification == "digest":
            node_seconds = size * (share / HASHED + load.dim * load.share_bytes / ENCODED)
            server_seconds += num_groups * asked * share / HASHED
            reply += DIGEST_SIZE * size
        rounds = size / asked  # since a node was last asked
        if downlink == "delta":
            made, applied = self._patching()
            node_seconds += min(rounds, 1 / DELTA_BYTES) * applied
            server_seconds += made
        model = bytes_to_node(downlink, load.bytes_of_model, rounds)
        num_asked = num_groups * asked
        seconds = self._seconds(num_asked, size, num_asked * model, num_asked * reply, server_seconds, node_seconds)
        woken = self._seconds(
            *(load.num_nodes, 2 * size, load.num_nodes * model, load.num_nodes * reply),
            *(server_seconds, 2 * node_seconds),
        )
        if_woken = seconds.total if redundancy == "full" else woken.total + 2 * load.network.latency
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
            downlink=downlink,
            referee=load.referee,
            bytes_out=num_asked * model,
            bytes_in=num_asked * reply,
            seconds=seconds,
            seconds_if_woken=if_woken,
            seconds_if_asked=if_woken + size * load.batch_seconds if load.referee else None,
        )

    def baselines(self, downlink: DownlinkName) -> tuple[Baseline, ...]:
        load = self.workload
        smallest, liars = load.smallest_group_without_referee, load.byzantine
        vector = load.dim * load.share_bytes
        rows: list[tuple[Kind, str, int, int, int]] = [("no defence", "none", 1, 1, vector)]
        rows += [
            (name, "unproven" if name == "signum" else f"{liars} in all", load.num_nodes, 1, sent)
            for name, sent in zip(AGGREGATORS, (-(-load.dim // 8), vector, vector), strict=True)
            if load.num_nodes >= least_nodes(name, liars)
        ]
        if load.num_nodes >= smallest:
            repeated = -(-load.num_nodes // (load.num_nodes // smallest))  # the largest group of the repetition code
            rows += [
                ("draco-cyclic", f"{liars} in all", load.num_nodes, smallest, 2 * vector),
                ("draco-repetition", f"{liars} a group", repeated, repeated, vector),
            ]
        return tuple(self._baseline(downlink, *row) for row in rows)

    def _baseline(
        self, downlink: DownlinkName, name: Kind, tolerates: str, size: int, batches: int, reply: int
    ) -> Baseline:
        load = self.workload
        nodes = load.num_nodes
        model = bytes_to_node(downlink, load.bytes_of_model)
        made, applied = self._patching() if downlink == "delta" else (0.0, 0.0)
        server_seconds = self.server_seconds(name, nodes, size, 1, load.dim) + made
        return Baseline(
            name=name,
            tolerates=tolerates,
            num_nodes=nodes,
            group_size=size,
            batches_per_node=batches,
            downlink=downlink,
            bytes_out=nodes * model,
            bytes_in=nodes * reply,
            seconds=self._seconds(nodes, batches, nodes * model, nodes * reply, server_seconds, applied),
        )

    def _patching(self) -> tuple[float, float]:
        """Return the seconds that it takes to make a round's patch, and to apply it."""
        load = self.workload
        made = self.server_seconds("patch made", load.num_nodes, 1, 1, load.dim)
        return made, self.server_seconds("patch applied", load.num_nodes, 1, 1, load.dim)

    def _seconds(
        self, asked: int, batches: int, bytes_out: int, bytes_in: int, server_seconds: float, node_seconds: float
    ) -> RoundSeconds:
        seconds = round_seconds(
            self.workload.network,
            num_nodes=asked,
            batches_per_node=batches,
            batch_seconds=self.workload.batch_seconds,
            bytes_out=bytes_out,
            bytes_in=bytes_in,
            server_seconds=server_seconds,
            waited=False,
        )
        return replace(seconds, computation=seconds.computation + node_seconds)


def _largest_compression(workload: Workload, verification: Verification, size: int) -> int:
    """Return the largest admissible k for a group size of at least `Workload.smallest_group`."""
    s, e = workload.byzantine, workload.stragglers
    checks = s * (2 - (verification == "digest") - workload.referee)
    return size - e - checks


def _wanted(name: str, value: Option | Literal["any"], allowed: tuple[Option, ...]) -> tuple[Option, ...]:
    """Return the values that an option stands for: all if it is "any"."""
    check_one_of(name, value, (*allowed, "any"))
    return tuple(option for option in allowed if value in (option, "any"))
