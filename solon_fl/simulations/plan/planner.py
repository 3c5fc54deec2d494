"""Which group size r and compression k make a round shortest, and what that is worth."""

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

# Bytes a second of one thread (AMD EPYC): at d = 11M, r = 20 and k = 6..15, all digests took 0.14 to 0.26 s.
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
    """Return all admissible group sizes and compressions, and what a round of each takes.

    Parameters
    ----------
    workload : Workload
        Nodes, gradient and network.
    verification : "algebra", "digest" or "any"
        Of the `SolonConfig`; "any" ranks the choices of both.
    redundancy : "full", "reactive" or "any"
        Likewise.
    downlink : "full", "delta" or "any"
        Likewise, and of the baselines.
    server_seconds : callable, optional
        (kind, num_nodes, group_size, compression, dim) -> the server's seconds in one round; kind is "solon", the
        name of a baseline, or "patch made" or "patch applied" (which nodes do). Default: `MeasuredServer`.

    Raises
    ------
    ConfigurationError
        If no group size is admissible (the message says what to change).

    Notes
    -----
    Admissible: r divides P, 2 s + e + k <= r (with digests max(2 s + 1, s + k) + e <= r), and r <= 128. With a referee:
    s + e + k <= r (with digests max(s + 1, k) + e <= r). All schemes process P batches a round, as in the paper.

    A referee computes as fast as a node, and only in rounds in which it is asked about a group: its r batches, after
    all nodes.

    Digests: every reply carries 32 r bytes more; a node encodes and hashes all r shares once a round, and the server
    hashes those that arrive, at rates that were measured on one machine (`HASHED`, `ENCODED`).

    Redundancy "reactive" is planned for rounds in which all who are asked answer and agree: s + k + e nodes of a
    group (with digests max(s + 1, k) + e) get the model, compute r batches each, and send a share. A round in which
    they don't takes the computation twice, and sends what full redundancy does. The server's seconds are those of full
    redundancy, and no less with digests, though it has fewer shares to decode and no liars to locate.

    Downlink "delta": a node is sent a patch for every round since it was last asked, never more than the whole model
    (`bytes_to_node`): with redundancy "reactive" on average r over the nodes asked. The server makes one patch a round,
    and a node applies those that it is sent. The first round, which sends the whole model, is left out.

    The baselines, per node, with each downlink:

    - "no defence" is an average: one batch, the whole gradient.
    - "draco-repetition": groups of 2 s + e + 1 nodes or more, as many and as equal as possible, in which
      every node computes the batches of all and sends the whole gradient; tolerates s liars a group, like Solon.
    - "draco-cyclic": 2 s + e + 1 batches and twice the gradient's bytes (complex numbers); tolerates s liars among
      ALL nodes, which is less. Both left out if there are fewer nodes than that.
    - "signum", "multikrum" and "bulyan": one batch, a bit for every entry or the whole gradient. They estimate the
      gradient, and are told of s liars among all nodes. Left out if there are too few nodes for so many liars.

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
    """What a row costs."""

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
        """Return the seconds of making a round's patch, and of applying it."""
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
    """Return the largest k for a group size that is admissible, `Workload.smallest_group` or more."""
    s, e = workload.byzantine, workload.stragglers
    checks = s * (2 - (verification == "digest") - workload.referee)
    return size - e - checks


def _wanted(name: str, value: Option | Literal["any"], allowed: tuple[Option, ...]) -> tuple[Option, ...]:
    """Return what an option stands for, all if it is "any"."""
    check_one_of(name, value, (*allowed, "any"))
    return tuple(option for option in allowed if value in (option, "any"))
