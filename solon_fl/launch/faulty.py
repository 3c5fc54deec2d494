"""Injects a node's faults into the app that Flower loads in the node's process for messages.

``python -m solon_fl.launch.faulty`` runs ``flwr-clientapp`` with these faults. It replaces one private name inside
Flower. If another version of Flower lacks that name, the program ends at once with an error.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Message

from solon_fl.errors import ConfigurationError
from solon_fl.launch.faults import Fault, faults_from_json, faults_to_json
from solon_fl.launch.markers import ASKED, BEGUN, DONE, DUE, OVER, TRIED, Markers

__all__ = ["CLIENTAPP", "FAULTS", "FaultyApp", "describe", "install"]

FAULTS = "SOLON_FAULTS"  # environment variable of a node's processes: the folder of the markers, and the node's faults
CLIENTAPP = "flwr-clientapp"
TRAIN = "train"
PATIENCE = 30.0  # seconds for which a process waits to be stopped or killed
App = Callable[[Message, Context], Message]


def describe(folder: Path, faults: Sequence[tuple[int, Fault]]) -> str:
    """Return the value of the environment variable `FAULTS` for a node's faults, each with its number in the run."""
    numbers, own = [number for number, _ in faults], [fault for _, fault in faults]
    return json.dumps([str(folder), numbers, faults_to_json(own)])


def install() -> None:
    """Inject the faults that the environment describes into the app that this process will load."""
    folder, numbers, faults = json.loads(os.environ[FAULTS])
    own = list(zip(numbers, faults_from_json(faults), strict=True))
    module, name = import_module("flwr.supernode.runtime.run_clientapp"), "get_load_client_app_fn"
    if not hasattr(module, name):
        raise AttributeError(f"this version of Flower has no {module.__name__}.{name}; run it without faults.")
    get_load = getattr(module, name)

    def get_faulty_load(*arguments: object, **options: object) -> Callable[..., FaultyApp]:
        load = get_load(*arguments, **options)
        return lambda *app: FaultyApp(load(*app), own, Markers(Path(folder)))

    setattr(module, name, get_faulty_load)


class FaultyApp:
    """An app that lies in replies to training messages, or waits during one to be stopped or killed.

    Parameters
    ----------
    app : callable
        The real app.
    faults : sequence of (int, Fault)
        The faults of this node, each with its number.
    markers : Markers
        The store for the events of faults.
    """

    def __init__(self, app: App, faults: Sequence[tuple[int, Fault]], markers: Markers) -> None:
        self._app = app
        self._faults = faults
        self._markers = markers

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the app's reply, or a lie."""
        server_round = _round_of(message)
        if server_round is None:
            return self._app(message, context)
        answer = self._app
        for number, fault in self._faults:
            if fault.kind == "lie" and self._is_due(number, fault, server_round):
                self._markers.set(number, ASKED)
                answer = self._lying(number, fault, server_round, answer)
            elif fault.kind != "lie" and fault.round is not None and server_round >= fault.round:
                self._await_the_end(number, server_round)
        return answer(message, context)

    def _is_due(self, number: int, fault: Fault, server_round: int) -> bool:
        if self._markers.get(number, OVER) is not None:
            return False
        if fault.round is not None:
            return server_round >= fault.round
        return self._markers.get(number, DUE) is not None

    def _await_the_end(self, number: int, server_round: int) -> None:
        """Announce once that the fault is due, and wait for the node's injector to stop or kill this process."""
        if self._markers.set(number, BEGUN, round=server_round):
            deadline = time.monotonic() + PATIENCE
            while self._markers.get(number, DONE) is None and time.monotonic() < deadline:
                time.sleep(0.05)

    def _lying(self, number: int, fault: Fault, server_round: int, app: App) -> App:
        def lie(message: Message, context: Context) -> Message:
            from solon_fl.simulations.attacks.registry import lone_liar_mod, make_attack_mod  # imports torch
            from solon_fl.task import TASK, SolonTask

            honest: list[str] = []

            def honestly(asked: Message, told: Context) -> Message:
                reply = app(asked, told)
                if asked is message:
                    honest.append(_digest(reply))
                return reply

            try:
                if TASK in message.content.config_records:
                    mod = lone_liar_mod(fault.attack, SolonTask.from_message(message))
                else:
                    mod = make_attack_mod(fault.attack, {_number_of(message, context)}, seed=0)
                reply = mod(message, context, honestly)
            except ConfigurationError as error:
                self._markers.set(number, TRIED, why=str(error))
                return app(message, context)
            except Exception:
                self._markers.set(number, BEGUN, round=server_round)  # the attack crashes the node on purpose
                raise
            if _digest(reply) not in honest:
                self._markers.set(number, BEGUN, round=server_round)
            else:
                self._markers.set(number, TRIED, why="its replies were honest")
            return reply

        return lie


def _round_of(message: Message) -> int | None:
    """Return the round of a training message, or None for any other message."""
    if message.metadata.message_type.partition(".")[0] == TRAIN and message.has_content():
        for record in message.content.config_records.values():
            if isinstance(found := record.get("server-round"), int):
                return found
    return None


def _number_of(message: Message, context: Context) -> int:
    from solon_fl.simulations.attacks.liars import Addressee

    return Addressee.of(message, context).number


def _digest(reply: Message | None) -> str:
    """Return a digest of the parts of a reply that the server reads."""
    digest = hashlib.sha256()
    if reply is not None and reply.has_content():
        for name, arrays in reply.content.array_records.items():
            for key, array in arrays.items():
                digest.update(f"{name} {key} {array.dtype} {array.shape} ".encode() + array.data)
        for name, config in reply.content.config_records.items():
            digest.update(f"{name} {dict(config)}".encode())
    return digest.hexdigest() if reply is not None else ""


def main() -> NoReturn:
    """Run flwr-clientapp with the faults of this node."""
    install()
    sys.argv[0] = CLIENTAPP
    (entry,) = distribution("flwr").entry_points.select(group="console_scripts", name=CLIENTAPP)
    sys.exit(entry.load()())


if __name__ == "__main__":
    main()
