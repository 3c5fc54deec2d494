"""Whom everybody trusts: who computes a group's vector where the nodes' shares don't settle it.

docs/explanation/referee.md has what that is good for, and the proofs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from torch import Tensor

from solon_fl.errors import ConfigurationError, NodeFailedError, RefereeError
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.fetching import fetcher_of
from solon_fl.strategies.replies import is_silence, read, read_share, read_unreached
from solon_fl.task import SolonTask

__all__ = [
    "Answer",
    "LocalReferee",
    "Referee",
    "TrustedNodes",
    "ask_trusted",
    "read_answer",
    "referee_of",
    "task_of_referee",
]

Settings = Mapping[str, bool | float | int | str]


class LocalReferee:
    """A referee in the server's own process, on its devices.

    Parameters
    ----------
    client
        What the nodes run: a `SolonClientMixin` or any object with ``client_app()``, or a ClientApp. It must compute
        what an honest node computes, and so have the data.
    node_config, run_config : mapping, optional
        What it finds in ``context.node_config`` and ``context.run_config``. With `SolonConfig.grouping` "silo" the
        entry "silo" of the former is the silo whose batches it is to compute; it must have the data of all.

    Raises
    ------
    ConfigurationError
        If the client is none of these.
    """

    def __init__(self, client: Any, *, node_config: Settings | None = None, run_config: Settings | None = None) -> None:
        is_class = isinstance(client, type)
        app = client.client_app() if hasattr(client, "client_app") and not is_class else client
        if not isinstance(app, ClientApp):
            raise ConfigurationError(
                f"referee must be what the nodes run, or names of trusted nodes; got {str(client)[:80]!r}; give an "
                "object with client_app(), such as MyClient(), a ClientApp, or a list of names."
            )
        self._app = app
        self._node_config = dict(node_config or {})
        self._run_config = dict(run_config or {})

    def compute(self, message: Message, silo: str | None = None) -> Message:
        """Return the reply to a message about a group of that silo, or raise RefereeError."""
        context = Context(
            run_id=0,
            node_id=0,
            node_config={**self._node_config, **({} if silo is None else {"silo": silo})},
            state=RecordDict(),
            run_config=self._run_config,
        )
        try:
            return self._app(message, context)
        except NodeFailedError as error:  # which says what the client's code raised
            raise RefereeError(f"the referee failed: {error}") from error
        except Exception as error:
            raise RefereeError(f"the referee failed: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class TrustedNodes:
    """Referees on nodes of their own, which are members of no group.

    Parameters
    ----------
    names : collection of str
        Under which the nodes are registered with the SuperLink, or better their identities, "key:..." (`NodeRecord`):
        somebody who may register nodes can give one a name that is taken. The first that is connected is asked, then
        the next. With `SolonConfig.grouping` "silo" a trusted node is asked about its own silo only, and must be
        registered under a name like "hospital-a/judge".

    Raises
    ------
    ConfigurationError
        If there are none, or they are no names.
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]) -> None:
        given = (names,) if isinstance(names, str) else tuple(names)
        if not given or not all(isinstance(name, str) and name for name in given):
            raise ConfigurationError(f"referee must name at least one node; got {given!r}; give a list of names.")
        object.__setattr__(self, "names", given)


Referee = LocalReferee | TrustedNodes


def referee_of(given: Any) -> Referee | None:
    """Return what a user gave as a referee: a client object, names, one of the classes here, or None."""
    if given is None or isinstance(given, LocalReferee | TrustedNodes):
        return given
    if isinstance(given, str | list | tuple | set | frozenset):
        return TrustedNodes(given)
    return LocalReferee(given)


def task_of_referee(task: SolonTask) -> SolonTask:
    """Return the task of computing all of what the nodes of a group compute: one share, the vector itself."""
    return replace(task, slot=0, group_size=1, compression=1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a referee says.

    Attributes
    ----------
    vector : Tensor, (d,)
        The group's; its own memory.
    unreached : frozenset of str
        Parameters that no loss depends on.
    """

    vector: Tensor
    unreached: frozenset[str]


def read_answer(reply: Message, dim: int, dtype: torch.dtype) -> Answer | None:
    """Return what a referee's reply says; None if it is the SuperLink's own, that the node is not to be reached.

    Raises
    ------
    RefereeError
        If it is anything else than a vector of that length and dtype.
    """

    def reader(reply: Message) -> Answer:
        return Answer(read_share(reply, dim, dtype).clone(), read_unreached(reply))

    found = read(reply, reader)
    if isinstance(found, Answer):
        return found
    if found.silence:
        return None
    where = "".join(f"\n\t{line}" for line in found.where)
    raise RefereeError(
        f"the referee's answer can't be used: {found.reason}; it must run what the nodes run, with the same data and "
        f"the same versions.{where}"
    )


def ask_trusted(
    grid: Grid, node_ids: Iterable[int], to_referee: Callable[[int], Message], timeout: float | None
) -> list[Message]:
    """Return the replies of these nodes until one can be read, or the timeout (seconds) is over."""
    replies: list[Message] = []

    def receive(batch: list[tuple[int, Message]]) -> bool:
        replies.extend(reply for _, reply in batch if not (reply.has_error() and is_silence(reply)))
        return bool(replies)

    _, unanswered = exchange(grid, {node_id: to_referee(node_id) for node_id in node_ids}, timeout, receive)
    for message_id in unanswered:
        fetcher_of(grid).forget(message_id)
    return replies
