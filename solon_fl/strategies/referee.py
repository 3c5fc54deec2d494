"""The referee: a trusted party that computes a group's vector if the nodes' shares don't settle it.

docs/explanation/referee.md explains its use and has the proofs.
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
        The program that the nodes run: a `SolonClientMixin` or any other object with ``client_app()``, or a ClientApp.
        It must compute what an honest node computes, and so needs the same data.
    node_config, run_config : mapping, optional
        The values of ``context.node_config`` and ``context.run_config`` in that program. With ``SolonConfig.grouping``
        "silo", the entry "silo" of the former is the silo whose batches it is to compute: it must have the data of all
        silos.

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
                f"referee must be the program of the nodes or names of trusted nodes; got {str(client)[:80]!r}; give "
                "an object with client_app(), such as MyClient(), a ClientApp, or a list of names."
            )
        self._app = app
        self._node_config = dict(node_config or {})
        self._run_config = dict(run_config or {})

    def compute(self, message: Message, silo: str | None = None) -> Message:
        """Return the reply to a message about a group of that silo.

        Raises
        ------
        RefereeError
            If the program fails.
        """
        context = Context(
            run_id=0,
            node_id=0,
            node_config={**self._node_config, **({} if silo is None else {"silo": silo})},
            state=RecordDict(),
            run_config=self._run_config,
        )
        try:
            return self._app(message, context)
        except NodeFailedError as error:  # its message has the exception of the client's code
            raise RefereeError(f"the referee failed: {error}") from error
        except Exception as error:
            raise RefereeError(f"the referee failed: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class TrustedNodes:
    """Referees on nodes of their own, which belong to no group.

    Parameters
    ----------
    names : collection of str
        The names under which the nodes are registered with the SuperLink or, better, their identities ("key:...", see
        `NodeRecord`): anybody who may register nodes can choose a name that is already in use. The first one that is
        connected is asked, then the next. With ``SolonConfig.grouping`` "silo", a trusted node is only asked about its
        own silo, and must be registered under a name like "hospital-a/judge".

    Raises
    ------
    ConfigurationError
        If there are no names, or they are not strings.
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]) -> None:
        given = (names,) if isinstance(names, str) else tuple(names)
        if not given or not all(isinstance(name, str) and name for name in given):
            raise ConfigurationError(f"referee must name at least one node; got {given!r}; give a list of names.")
        object.__setattr__(self, "names", given)


Referee = LocalReferee | TrustedNodes


def referee_of(given: Any) -> Referee | None:
    """Return the referee from a user's argument: a client object, names, one of the classes here, or None."""
    if given is None or isinstance(given, LocalReferee | TrustedNodes):
        return given
    if isinstance(given, str | list | tuple | set | frozenset):
        return TrustedNodes(given)
    return LocalReferee(given)


def task_of_referee(task: SolonTask) -> SolonTask:
    """Return the task of computing everything that a group's nodes compute: one share, which is the vector itself."""
    return replace(task, slot=0, group_size=1, compression=1)


@dataclass(frozen=True, slots=True)
class Answer:
    """A referee's answer.

    Attributes
    ----------
    vector : Tensor, (d,)
        The group's vector, in its own memory.
    unreached : frozenset of str
        Parameters that no loss depends on.
    """

    vector: Tensor
    unreached: frozenset[str]


def read_answer(reply: Message, dim: int, dtype: torch.dtype) -> Answer | None:
    """Return the answer in a referee's reply; None if the reply is the SuperLink's error for an unreachable node.

    Raises
    ------
    RefereeError
        If it is anything other than a vector of that length and dtype.
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
        f"the referee's answer can't be used: {found.reason}; the referee must run the nodes' program with the same "
        f"data and the same versions.{where}"
    )


def ask_trusted(
    grid: Grid, node_ids: Iterable[int], to_referee: Callable[[int], Message], timeout: float | None
) -> list[Message]:
    """Return these nodes' replies up to the first ones that arrive, or none if the timeout (in seconds) ends first."""
    replies: list[Message] = []

    def receive(batch: list[tuple[int, Message]]) -> bool:
        replies.extend(reply for _, reply in batch if not (reply.has_error() and is_silence(reply)))
        return bool(replies)

    _, unanswered = exchange(grid, {node_id: to_referee(node_id) for node_id in node_ids}, timeout, receive)
    for message_id in unanswered:
        fetcher_of(grid).forget(message_id)
    return replies
