"""How far honest nodes are apart: the float noise that `SolonConfig.rtol` must be above, measured."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context, Decimal
from functools import partial

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from solon_fl.coding import Code, RealCode
from solon_fl.coding.real.decoder import worst_relative_error
from solon_fl.coding.sections import Sections
from solon_fl.config import CodeName, SolonConfig, make_code
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.strategies.comparing import LARGEST_NOISE, compare, mixing_slots, same_bits
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.replies import Unusable, read, read_finite_share, read_share
from solon_fl.strategies.roster import Roster
from solon_fl.task import ARRAYS, SolonTask

__all__ = ["MARGIN", "Calibration", "calibrate", "measure"]

MARGIN = 4.0  # of rtol over the noise: in other rounds, and in slots whose shares are smaller
FLOORS = {torch.float32: 1e-6, torch.float64: 1e-12}  # smallest rtol by the shares' dtype: encoding rounds, too
NodeKey = tuple[int, int]  # group, node id: the key of a node's messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far the nodes' shares were from each other, and the rtol that follows.

    Attributes
    ----------
    noise : float
        Largest distance of a share from its group's reference, relative to that in each class of tensors (parameters,
        buffers), without `liars` nodes of each group, the farthest.
    rtol : float
        To use: 4 times `noise`, at least 1e-6 (1e-12 for float64 shares), rounded up to two digits.
    certificate : float
        The worst relative error with that rtol; see `solon_fl.Decoder`.
    identical : bool
        Whether the shares of every group were equal bit for bit, outliers apart. One liar can make it False.
    exact : bool
        Whether code "exact" suits: in a further round, in which nodes take torch's deterministic kernels and send
        shares of that code, at least k + s of each group were equal bit for bit, and at most `liars` others. Only asked
        where it may be so: if no more than that differed before, or the config has that code; and the model is float32.
    different : tuple of int
        Ids of the nodes whose shares of that round were others than most of their group's.
    distances : dict
        Largest relative distance from the reference, by node id, of all nodes that sent shares in groups that could
        be compared.
    outliers : tuple of int
        Ids of the nodes farther than `rtol`: they lie, are broken, or compute in some other way than the others.
    malformed : dict
        Id of each node that sent something else than a share, and what was wrong with it.
    silent : tuple of int
        Ids of the nodes that sent nothing.
    labels : dict
        What the log calls each node, by id: its registered name, or its id.
    groups : tuple of tuple of int
        Ids of the nodes, by group.
    warnings : tuple of str
        What to look at, and the remedy.
    """

    noise: float
    rtol: float
    certificate: float
    identical: bool
    exact: bool
    different: tuple[int, ...]
    distances: dict[int, float]
    outliers: tuple[int, ...]
    malformed: dict[int, str]
    silent: tuple[int, ...]
    labels: dict[int, str]
    groups: tuple[tuple[int, ...], ...]
    warnings: tuple[str, ...]

    @property
    def finding(self) -> str:
        """Noise, rtol and certificate in one line, and whether code "exact" suits."""
        alike = "shares equal bit for bit" if self.identical else f"float noise between nodes {self.noise:.1e}"
        real = f"{alike}; rtol={self.rtol:g} suits, with certificate {self.certificate:.1e}"
        if not self.exact:
            return real
        nodes = f"all nodes but {_names(self.different, self.labels)}" if self.different else "all nodes"
        return f"{nodes} compute the same bits: code='exact' suits (code='fourier': {real})"

    def of_node(self, node_id: int) -> str:
        """Return what was found of a node, in words."""
        if node_id in self.malformed:
            return f"not a share: {self.malformed[node_id]}"
        if node_id in self.silent:
            return "silent"
        if node_id not in self.distances:
            return "its group could not be compared"
        distance = self.distances[node_id]
        kind = ", an outlier" if node_id in self.outliers else ", other bits" if node_id in self.different else ""
        return (f"{distance:.1e}" if distance else "0") + kind

    def __str__(self) -> str:
        """Return a table of all nodes, the finding, and the warnings."""
        width = max([len("node"), *(len(label) for label in self.labels.values())])
        lines = [f"group  {'node':<{width}}  distance"]
        for group, node_ids in enumerate(self.groups):
            lines += [f"{group:>5}  {self.labels[node]:<{width}}  {self.of_node(node)}" for node in node_ids]
        return "\n".join([*lines, self.finding, *(f"warning: {warning}" for warning in self.warnings)])


def calibrate(
    grid: Grid,
    initial_arrays: ArrayRecord,
    config: SolonConfig,
    *,
    buffers: Collection[str] = (),
    train_config: ConfigRecord | None = None,
    rounds: int = 1,
    timeout: float | None = 600.0,
    liars: int | None = None,
) -> Calibration:
    """Measure the float noise between the nodes, and return the rtol that it needs, and whether code "exact" suits.

    All nodes of a group compute the same share of the same batches, and their shares are compared. Nothing is trained,
    and the nodes' program is that of any other round.

    Parameters
    ----------
    grid, initial_arrays, config, buffers, train_config
        As for `SolonStrategy` and its `start`. With a model that is trained already the noise is mostly larger,
        relative to its smaller gradient.
    rounds : int
        Rounds to measure in, each on batches and a slot of its own; the largest noise counts.
    timeout : float or None
        Of each round, seconds: a silent node is waited for that long. It also bounds the wait for the nodes.
    liars : int, optional
        Nodes of one group that may lie now: as many, the farthest, are left out. Default: config.byzantine. If you
        know that all nodes are honest, give 0: then the few that differ from the others count too.

    Raises
    ------
    ConfigurationError
        If rounds < 1, or liars is not in 0..(group_size - 1) / 2.
    NodesMissingError
        If fewer nodes than needed connect within the timeout.
    GroupFailedError
        If no group could be compared; the message says why not.

    Notes
    -----
    Guarantee: `liars` nodes of a group, whatever they send, can't make `noise` larger than the largest distance between
    two honest nodes of one group, relative to its reference; so rtol is at most four times that, rounded up, or the
    floor. And no nodes at all can make rtol larger than 4e-3: what differs by more than 1e-3 is not counted. Liars can
    take the place of honest nodes that are far from the others, and so keep rtol below what these need.
    Reference of a group: the share whose (n - liars)-th nearest of n shares, itself included, is nearest.
    Cost: that of `rounds` rounds, and one more if shares are equal; all shares of a round in memory, and n^2 m
    multiply-adds a group. With code "exact" noise is measured on shares of the Fourier code.
    """
    model = ServerModel(initial_arrays, buffers, partial(torch.optim.SGD, lr=1.0), code=config.make_code())
    return measure(
        *(grid, Roster(config), model, initial_arrays, config),
        rounds=rounds,
        train_config=train_config or ConfigRecord(),
        timeout=timeout,
        liars=config.byzantine if liars is None else liars,
    )


def measure(
    grid: Grid,
    roster: Roster,
    model: ServerModel,
    arrays: ArrayRecord,
    config: SolonConfig,
    *,
    rounds: int,
    train_config: ConfigRecord,
    timeout: float | None,
    liars: int,
) -> Calibration:
    """Do what `calibrate` does, with a roster and a model that are there already."""
    if not isinstance(rounds, int) or rounds < 1:
        raise ConfigurationError(f"rounds must be a whole number >= 1; got rounds={rounds!r}.")
    most = (config.group_size - 1) // 2
    if not isinstance(liars, int) or not 0 <= liars <= most:
        raise ConfigurationError(
            f"liars must be from 0 to {most}, less than half of group_size={config.group_size}; got liars={liars!r}."
        )
    findings = _Findings(liars=liars)
    name_of_real: CodeName = "fourier" if config.code == "exact" else config.code
    real, exact = (make_code(name, config.group_size, config.compression) for name in (name_of_real, "exact"))
    assert isinstance(real, RealCode)

    def ask(number: int, code: Code, slots: Sequence[int], reader: Callable[..., Tensor]) -> _Replies:
        roster.update(grid, timeout, server_round=0)
        messages = {}
        for group, nodes in enumerate(roster.places):
            slot = slots[(number - 1 + group) % len(slots)]
            task = SolonTask.of_run(config, round=number, group=group, slot=slot, dim=model.dim, buffers=model.buffers)
            task = replace(task, code="exact" if code is exact else name_of_real)
            for node_id in nodes:
                if node_id is not None:
                    messages[group, node_id] = task.to_message({ARRAYS: arrays}, train_config, node_id, timeout)
                    findings.labels[node_id] = roster.label(node_id)
                    findings.groups.setdefault(group, {})[node_id] = None
        length = model.sections_of(code).num_columns
        return _collect(grid, messages, timeout, partial(reader, length=length, dtype=model.vector.dtype))

    for number in range(1, rounds + 1):
        findings.take(ask(number, real, mixing_slots(real), read_finite_share), model.sections_of(real))
    if model.vector.dtype == torch.float32 and (config.code == "exact" or findings.are_nearly_identical):
        mixing = range(config.compression, config.group_size) or range(config.group_size)
        findings.take_bits(ask(rounds + 1, exact, mixing, read_share))
    return findings.conclude(config, real, model.vector.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replies:
    """What came in one round."""

    shares: dict[int, dict[int, Tensor]]  # by group and node id
    malformed: dict[int, str]
    silent: list[int]


def _collect(
    grid: Grid, messages: dict[NodeKey, Message], timeout: float | None, reader: Callable[[Message], Tensor]
) -> _Replies:
    """Send messages, wait for all replies, and read them."""
    shares: dict[int, dict[int, Tensor]] = {group: {} for group, _ in messages}
    malformed: dict[int, str] = {}

    def receive(batch: list[tuple[NodeKey, Message]]) -> bool:
        for (group, node_id), reply in batch:
            share = read(reply, reader)
            if not isinstance(share, Unusable):
                shares[group][node_id] = share
            elif not share.silence:
                malformed[node_id] = share.reason
        return False

    asked = list(messages)
    exchange(grid, messages, timeout, receive)
    silent = [node_id for group, node_id in asked if node_id not in shares[group] and node_id not in malformed]
    return _Replies(shares=shares, malformed=malformed, silent=silent)


@dataclass(kw_only=True)
class _Findings:
    """What was found so far, over all groups and rounds."""

    liars: int
    noise: float = 0.0
    distances: dict[int, float] = field(default_factory=dict)
    unequal: set[int] = field(default_factory=set)  # ids of nodes whose share was not the reference bit for bit
    malformed: dict[int, str] = field(default_factory=dict)
    silent: dict[int, None] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    groups: dict[int, dict[int, None]] = field(default_factory=dict)
    compared: bool = False
    asked_for_bits: bool = False
    fewest_equal: int = sys.maxsize  # nodes of a group that sent the same bits
    different: set[int] = field(default_factory=set)  # ids of nodes whose exact shares were not those of most
    reasons: dict[int, str] = field(default_factory=dict)  # why a group could not be compared

    def take(self, replies: _Replies, sections: Sections) -> None:
        """Add a round."""
        self.malformed |= replies.malformed
        self.silent |= dict.fromkeys(replies.silent)
        for group, of_group in replies.shares.items():
            node_ids, rows = list(of_group), list(of_group.values())
            result = compare(rows, self.liars, sections)
            if isinstance(result, str):
                self.reasons[group] = result
                continue
            self.compared = True
            self.noise = max(self.noise, result.noise)
            for node_id, row, distance in zip(node_ids, rows, result.distances, strict=True):
                self.distances[node_id] = max(distance, self.distances.get(node_id, 0.0))
                if not same_bits(row, rows[result.reference]):
                    self.unequal.add(node_id)

    @property
    def are_nearly_identical(self) -> bool:
        """Whether all shares so far were equal, but for those of as many nodes of a group as may lie."""
        few = all(len(self.unequal & members.keys()) <= self.liars for members in self.groups.values())
        return self.compared and not self.reasons and few

    def take_bits(self, replies: _Replies) -> None:
        """Add the round in which only bits matter."""
        self.asked_for_bits = True
        self.malformed |= replies.malformed
        self.silent |= dict.fromkeys(replies.silent)
        for shares in replies.shares.values():
            bits = {node_id: share.numpy().tobytes() for node_id, share in shares.items()}
            (most, count), *_ = Counter(bits.values()).most_common(1) or [(b"", 0)]
            self.fewest_equal = min(self.fewest_equal, count)
            self.different |= {node_id for node_id, of_node in bits.items() if of_node != most}

    def _is_exact(self, config: SolonConfig) -> bool:
        few = all(len(self.different & members.keys()) <= self.liars for members in self.groups.values())
        return self.asked_for_bits and few and self.fewest_equal >= config.compression + config.byzantine

    def conclude(self, config: SolonConfig, real: RealCode, dtype: torch.dtype) -> Calibration:
        """Return the result.

        Raises
        ------
        GroupFailedError
            If no group could be compared.
        """
        if not self.compared:
            group, reason = next(iter(self.reasons.items()))
            malformed = next((f"; node {self.labels[n]} sent: {text}" for n, text in self.malformed.items()), "")
            raise GroupFailedError(
                f"no group could be compared, so there is no noise; group {group}: {reason}{malformed}"
            )
        rtol = _rounded_up(max(MARGIN * self.noise, FLOORS[dtype]))
        certificate = worst_relative_error(real, rtol)
        outliers = tuple(node_id for node_id, distance in self.distances.items() if distance > rtol)
        return Calibration(
            noise=self.noise,
            rtol=rtol,
            certificate=certificate,
            identical=not self.reasons and not self.unequal - set(outliers),
            exact=self._is_exact(config),
            different=tuple(sorted(self.different)),
            distances=self.distances,
            outliers=outliers,
            malformed=self.malformed,
            silent=tuple(self.silent),
            labels=self.labels,
            groups=tuple(tuple(node_ids) for node_ids in self.groups.values()),
            warnings=tuple(self._warnings(config, outliers, certificate)),
        )

    def _warnings(self, config: SolonConfig, outliers: Collection[int], certificate: float) -> list[str]:
        found = [f"group {group} could not be compared: {reason}" for group, reason in self.reasons.items()]
        if certificate >= 1 and config.code != "exact":
            found.append(
                f"the certificate is {certificate:.1e}, but should be below 1: lower byzantine or compression, raise "
                "group_size, make the nodes alike (hardware, versions, threads), or compute in float64."
            )
        names = _names(sorted(self.different), self.labels)
        if config.code == "exact" and not self._is_exact(config):
            found.append(
                "code='exact' needs k + s nodes of each group that compute the same bits"
                f"{f' (others: {names})' if self.different else ''}: give all the same hardware and software, or use "
                "code='fourier'."
            )
        elif config.code == "exact" and self.different:
            found.append(
                f"{names}, computing other bits, would be among the {config.byzantine} nodes of a group whose shares "
                "may be wrong: leave such nodes out, or make them like the others."
            )
        near = [node_id for node_id in outliers if self.distances[node_id] <= LARGEST_NOISE]
        if near:
            found.append(
                f"{_names(near, self.labels)} may lie, or have another kind of hardware or software: if you trust all "
                "nodes now, calibrate with liars=0, which makes rtol large enough for these."
            )
        for group, members in self.groups.items():
            bad = members.keys() & {*outliers, *self.malformed}
            if len(bad) > config.byzantine:
                found.append(
                    f"group {group} has {len(bad)} nodes that lie or fail, more than byzantine={config.byzantine}: it "
                    "can't be decoded like that."
                )
        return found


def _rounded_up(value: float) -> float:
    """Return the smallest number of two significant digits that is no less than the value."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(repr(value))))


def _names(node_ids: Collection[int], labels: Mapping[int, str]) -> str:
    shown = ", ".join(labels[node_id] for node_id in list(node_ids)[:5])
    return f"nodes {shown}{', ...' if len(node_ids) > 5 else ''}" if len(node_ids) > 1 else f"node {shown}"
