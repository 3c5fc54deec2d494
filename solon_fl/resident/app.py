"""The app that Flower loads instead of the real one; it hands each message to a worker."""

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pkgutil import resolve_name
from typing import NoReturn

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from solon_fl.checks import check_number
from solon_fl.errors import ConfigurationError, NodeFailedError
from solon_fl.resident import flower
from solon_fl.resident.errand import Errand
from solon_fl.resident.errors import ResidentError
from solon_fl.resident.outcome import Outcome
from solon_fl.resident.processes import is_alive

try:
    from solon_fl.resident import channel, folder
except ImportError:  # Windows
    POSSIBLE = False
else:
    POSSIBLE = hasattr(socket, "AF_UNIX")

__all__ = ["ResidentApp", "resident"]

SETTING = "resident"  # in a run's config; if it is False, the real app runs in Flower's own process
BACKLOG = 64
ATTEMPTS = 2
ENDING_SECONDS = 5.0  # for a worker to end after its socket was closed

logger = logging.getLogger("flwr")


def resident(reference: str, *, idle_seconds: float = 600.0) -> ClientApp:
    """Return a ClientApp that computes all messages of a node in one resident process, the worker.

    In a deployment, Flower starts a process for each message. It imports torch and the app and reads the app's data,
    which takes some 5 s of CPU time. The worker does so once. It serves one node in one run, one message after another.
    The first message starts it. It ends with its SuperNode, or when no message has come for `idle_seconds`. If it dies
    while it computes a message, a new worker computes that message.

    Parameters
    ----------
    reference : str
        ``"module:attribute"`` of the real ClientApp. The worker imports it; this process does not.
    idle_seconds : float
        How long a worker waits for a message before it ends. The next message then starts a new one.

    Raises
    ------
    ConfigurationError
        If the reference has another form, or if idle_seconds is not above 0.

    Notes
    -----
    There is no worker in simulations, on Windows, if the run's config has ``resident = false``, or where Flower
    installs the app's dependencies for each message. The real app then computes messages in Flower's own process. The
    same happens, with a warning, if no private socket can be made.

    Global variables of the real app persist between messages. `SolonClientMixin` and `solon_mod` keep nothing there
    that affects a result.

    Examples
    --------
    Put this in a file of its own, and name it as ``clientapp`` in pyproject.toml:

    >>> app = resident("my_package.client_app:app")
    """
    module, colon, attribute = reference.partition(":")
    if not (colon and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])):
        raise ConfigurationError(f'reference must be "module:attribute"; got reference={reference!r}.')
    if not check_number("idle_seconds", idle_seconds) > 0:
        raise ConfigurationError(f"idle_seconds must be above 0; got idle_seconds={idle_seconds}.")
    return ResidentApp(reference, idle_seconds)


class ResidentApp(ClientApp):
    """The app that `resident` returns."""

    def __init__(self, reference: str, idle_seconds: float) -> None:
        super().__init__()
        self._reference = reference
        self._idle_seconds = idle_seconds

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the real app's reply, or raise its exception."""
        superexec = flower.superexec()
        wanted = context.run_config.get(SETTING, True) and not flower.installs_dependencies()
        if superexec is None or not wanted or not POSSIBLE:
            return self._compute_here(message, context)
        try:
            outcome = self._have_computed(message, context, superexec)
        except ResidentError as error:
            logger.warning("This node has no resident worker: %s The message is computed without one.", error)
            return self._compute_here(message, context)
        vars(context).update(vars(outcome.context))
        if outcome.failure is not None:
            raise outcome.failure.rebuilt()
        return outcome.reply  # type: ignore[return-value]  # None if the app returned None

    def _compute_here(self, message: Message, context: Context) -> Message:
        reply: Message = resolve_name(self._reference)(message, context)
        return reply

    def _have_computed(self, message: Message, context: Context, superexec: int) -> Outcome:
        errand = Errand.of(self._reference, self._idle_seconds, superexec, context)
        for _ in range(ATTEMPTS):
            connection, key, process = _reach(errand)
            try:
                with connection, connection.makefile("rb") as stream:
                    channel.greet(connection, key)
                    channel.send(connection, (message, context, flower.Identity.of_this_process()))
                    outcome: Outcome = channel.receive(stream)
                    return outcome
            except (EOFError, OSError):
                if not is_alive(errand.superexec, errand.started):
                    raise NodeFailedError("the SuperNode ended while this message was computed.") from None
                logger.warning("The worker ended while it computed a message%s.", _how(process))
        raise NodeFailedError(
            f"the app must answer each message; got {ATTEMPTS} processes that ended while they computed this "
            f"message{_how(process)}; see the SuperNode's log for their output, and check for a lack of memory."
        )


def _refuse(app: ResidentApp, *arguments: object, **options: object) -> NoReturn:
    raise ConfigurationError(
        f"functions must be registered with the real app; got one for the resident app of {app._reference!r}."
    )


for category in ("train", "evaluate", "query", "lifespan"):
    setattr(ResidentApp, category, _refuse)


def _reach(errand: Errand) -> tuple[socket.socket, bytes, subprocess.Popen[bytes] | None]:
    """Return a connection to the worker of a node, the worker's key and, if it was just started, its process."""
    with folder.opened() as place:
        connection, process = socket.socket(socket.AF_UNIX), None
        try:
            try:
                key = place.read_key(errand.name)
                connection.connect(place.address(errand.name))
            except (FileNotFoundError, ConnectionRefusedError):  # there was no worker, or it died
                key, process = _start(errand, place)
                connection.connect(place.address(errand.name))
            channel.check_peer(connection)
        except (OSError, ResidentError) as error:
            connection.close()
            raise ResidentError(f"{error}") from None
        return connection, key, process


def _start(errand: Errand, place: "folder.Folder") -> tuple[bytes, subprocess.Popen[bytes]]:
    """Start a worker. It can be connected to at once, because its socket is made before it."""
    place.tidy()
    place.remove(errand.name)
    key = secrets.token_bytes(32)
    place.write_key(errand.name, key)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.address(errand.name))
        listener.listen(BACKLOG)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "solon_fl.resident.worker", str(listener.fileno()), errand.to_json()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(errand.sys_path)},
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # a Ctrl-C in the SuperNode's terminal ends the SuperNode, and then the worker
        )
    threading.Thread(target=process.wait, daemon=True).start()  # no zombie is left if this process lives longer
    return key, process


def _how(process: subprocess.Popen[bytes] | None) -> str:
    """Return how a process ended, as part of a sentence, or "" if that is unknown."""
    if process is not None:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(ENDING_SECONDS)
            return f" (signal {-code})" if code < 0 else f" (exit code {code})"
    return ""
