"""Measures the float noise between honest nodes, which `SolonConfig.rtol` must exceed."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from solon_fl.coding import Code, RealCode
from solon_fl.config import CodeName, SolonConfig, make_code
from solon_fl.errors import ConfigurationError, RefereeError
from solon_fl.strategies.calibrated import Calibration, Findings, Replies
from solon_fl.strategies.comparing import mixing_slots
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.referee import LocalReferee, Referee, TrustedNodes, ask_trusted, referee_of
from solon_fl.strategies.replies import Unusable, read, read_finite_share, read_share
from solon_fl.strategies.roster import Roster
from solon_fl.task import ARRAYS, SolonTask

__all__ = ["calibrate", "measure"]

NodeKey = tuple[int, int]  # group, node id: the key of a node's messages


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
    referee: Any = None,
) -> Calibration:
    """Measure the float noise between the nodes; return the ``rtol`` it requires and whether code "exact" suits.

    All nodes of a group compute the same share of the same batches, and the server compares their shares. Nothing is
    trained, and the nodes run the same program as in any other round.

    Parameters
    ----------
    grid, initial_arrays, config, buffers, train_config
        As for `SolonStrategy` and its ``start``. Noise is usually larger with a model that is already trained, as it is
        relative to a smaller gradient.
    rounds : int
        Number of rounds to measure, each with its own batches and slots. The largest noise counts.
    timeout : float or None
        Deadline of each round in seconds: a silent node costs that long. It also bounds the wait for the nodes to
        connect.
    liars : int, optional
        How many nodes of one group may lie now: in each group, that many of the farthest nodes are left out. Default:
        ``config.byzantine``. If you know that all nodes are honest, give 0: then the few that differ from the others
        also count.
    referee : optional
        As for `SolonStrategy`. All nodes are compared with the referee, so noise and bits include its own. It computes
        one group after the other.

    Returns
    -------
    Calibration
        The noise, the ``rtol`` to use, and a finding for each node.

    Raises
    ------
    ConfigurationError
        If ``rounds`` < 1, or ``liars`` is not in 0..(group_size - 1) / 2, or with a referee in 0..group_size - 1.
    NodesMissingError
        If fewer nodes than needed connect within the timeout.
    GroupFailedError
        If no group could be compared. The message says why.

    Notes
    -----
    Guarantee: whatever they send, ``liars`` nodes of a group can't make ``noise`` larger than the largest distance
    between two honest nodes of one group, relative to its reference. So ``rtol`` is at most four times that distance,
    rounded up, or the floor. No number of nodes can make ``rtol`` larger than 4e-3, because differences above 1e-3 are
    not counted. Liars can take the place of honest nodes that are far from the others, and thus keep ``rtol`` below
    what those need.

    The reference of a group is the referee's share. Without a referee, each of the n shares is scored by the distance
    to its (n - liars)-th nearest share, itself included, and the share with the smallest score is the reference.

    The cost is that of ``rounds`` rounds, and of one more if the shares are equal. All shares of a round are in memory,
    and each group takes n^2 m multiply-adds. With code "exact", noise is measured on shares of the Fourier code.
    """
    model = ServerModel(initial_arrays, buffers, partial(torch.optim.SGD, lr=1.0), code=config.make_code())
    judge = referee_of(referee)
    roster = Roster(config, trusted=judge.names if isinstance(judge, TrustedNodes) else ())
    return measure(
        *(grid, roster, model, initial_arrays, config),
        rounds=rounds,
        train_config=train_config or ConfigRecord(),
        timeout=timeout,
        liars=config.byzantine if liars is None else liars,
        referee=judge,
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
    referee: Referee | None = None,
) -> Calibration:
    """Do what `calibrate` does, with an existing roster and model."""
    if not isinstance(rounds, int) or rounds < 1:
        raise ConfigurationError(f"rounds must be a whole number >= 1; got rounds={rounds!r}.")
    minority = (config.group_size - 1) // 2
    most = minority if referee is None else config.group_size - 1
    if not isinstance(liars, int) or not 0 <= liars <= most:
        part = "half" if referee is None else "all"
        raise ConfigurationError(
            f"liars must be from 0 to {most}, less than {part} of group_size={config.group_size}; got liars={liars!r}."
        )
    findings = Findings(liars=liars)
    name_of_real: CodeName = "fourier" if config.code == "exact" else config.code
    real, exact = (make_code(name, config.group_size, config.compression) for name in (name_of_real, "exact"))
    assert isinstance(real, RealCode)

    def ask(number: int, code: Code, slots: Sequence[int], reader: Callable[..., Tensor]) -> Replies:
        roster.update(grid, timeout, server_round=0)
        length = model.sections_of(code).num_columns
        read_one = partial(reader, length=length, dtype=model.vector.dtype)
        messages, trusted = {}, dict[int, Tensor]()
        for group, nodes in enumerate(roster.places):
            slot = slots[(number - 1 + group) % len(slots)]
            task = SolonTask.of_run(config, round=number, group=group, slot=slot, dim=model.dim, buffers=model.buffers)
            task = replace(task, code="exact" if code is exact else name_of_real)
            for node_id in nodes:
                if node_id is not None:
                    messages[group, node_id] = task.to_message({ARRAYS: arrays}, train_config, node_id, timeout)
                    findings.labels[node_id] = roster.label(node_id)
                    findings.groups.setdefault(group, {})[node_id] = None
            if referee is not None:
                to_referee = partial(task.to_message, {ARRAYS: arrays}, train_config, timeout=timeout)
                trusted[group] = _share_of_referee(grid, referee, roster, group, to_referee, timeout, read_one)
        return replace(_collect(grid, messages, timeout, read_one), trusted=trusted)

    for number in range(1, rounds + 1):
        findings.take(ask(number, real, mixing_slots(real), read_finite_share), model.sections_of(real))
    if model.vector.dtype == torch.float32 and (config.code == "exact" or findings.are_nearly_identical):
        mixing = range(config.compression, config.group_size) or range(config.group_size)
        findings.take_bits(ask(rounds + 1, exact, mixing, read_share))
    return findings.conclude(config, real, model.vector.dtype)


def _share_of_referee(
    grid: Grid,
    referee: Referee,
    roster: Roster,
    group: int,
    to_referee: Callable[[int], Message],
    timeout: float | None,
    reader: Callable[[Message], Tensor],
) -> Tensor:
    """Return the referee's share of a task."""
    if isinstance(referee, LocalReferee):
        replies = [referee.compute(to_referee(0), roster.silo_of(group))]
    else:
        replies = ask_trusted(grid, roster.referees_of(group), to_referee, timeout)
    found = read(replies[0], reader) if replies else Unusable("no trusted node answered within the timeout")
    if isinstance(found, Unusable):
        raise RefereeError(f"the referee's share can't be used: {found.reason}")
    return found


def _collect(
    grid: Grid, messages: dict[NodeKey, Message], timeout: float | None, reader: Callable[[Message], Tensor]
) -> Replies:
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
    return Replies(shares=shares, malformed=malformed, silent=silent)
