"""A node whose SuperNode is a sleeping process, and an app that follows its messages' instructions."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from solon_fl.resident import resident
from solon_fl.resident.errand import Errand
from solon_fl.simulations.run._compat import become_server

__all__ = ["APP", "FakeNode", "processes_of"]

# The real app. The message's type selects an action, and the reply reports how it went.
APP = '''
import os, sys, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from solon_fl.errors import NodeFailedError

app = ClientApp()
calls = 0
busy = False


class OddError(KeyError):
    def __init__(self, one, other):
        super().__init__(one)

    def __str__(self):
        return "odd words"


@app.train()
def train(message, context):
    global calls, busy
    assert not busy, "two messages at once"
    busy = True
    asked = message.content["asked"]
    if asked["sleep"]:
        time.sleep(asked["sleep"])
    calls += 1
    busy = False
    context.state["seen"] = ConfigRecord({"calls": calls})
    answer = RecordDict({"answer": ConfigRecord({"process": os.getpid(), "calls": calls, "version": VERSION})})
    if "arrays" in message.content:
        answer["arrays"] = message.content["arrays"]
    return Message(answer, reply_to=message)


@app.train("fail")
def fail(message, context):
    context.state["seen"] = ConfigRecord({"calls": -1})
    raise OddError("one", "other")


@app.train("explain")
def explain(message, context):
    raise NodeFailedError("in the user's words")


@app.train("leave")
def leave(message, context):
    sys.exit(3)


@app.train("die")
def die(message, context):
    """Die, but no more often than asked."""
    place = Path(message.content["asked"]["folder"])
    deaths = len(list(place.glob("death-*")))
    if deaths < message.content["asked"]["times"]:
        (place / f"death-{deaths}").touch()
        os.kill(os.getpid(), 9)
    return train(message, context)


@app.train("talk")
def talk(message, context):
    print("said by the worker", file=sys.stderr, flush=True)
    return train(message, context)
'''


class FakeNode:
    """A node with a separate folder for its app.

    Parameters
    ----------
    folder : Path
        Folder for the app.
    run_id : int
        Id of the run that it serves.
    """

    def __init__(self, folder: Path, run_id: int = 1) -> None:
        become_server()
        self.folder = folder
        self.run_id = run_id
        self.supernode = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        self.context = self.new_context(run_id)

    def new_context(self, run_id: int, **settings: bool) -> Context:
        return Context(run_id=run_id, node_id=7, node_config={}, state=RecordDict(), run_config={**settings})

    def message(self, kind: str, arrays: Array | None = None, **asked: Any) -> Message:
        content = RecordDict({"asked": ConfigRecord({"sleep": 0.0, **asked})})
        if arrays is not None:
            content["arrays"] = ArrayRecord({"array": arrays})
        return Message(content, 7, kind)

    def app(self, idle_seconds: float = 60.0) -> ClientApp:
        return resident("toy_app:app", idle_seconds=idle_seconds)

    def ask(self, kind: str = "train", *, idle_seconds: float = 60.0, **asked: Any) -> dict[str, Any]:
        """Return the app's report about a message."""
        reply = self.app(idle_seconds)(self.message(kind, **asked), self.context)
        return dict(reply.content.config_records["answer"])

    def errand(self) -> Errand:
        """Return the errand of this node's worker."""
        return Errand.of("toy_app:app", 60.0, self.supernode.pid, self.context)

    def kill(self) -> None:
        """End the SuperNode at once."""
        self.supernode.kill()
        self.supernode.wait()


def processes_of(folder: Path) -> list[int]:
    """Return the workers, living or not, whose command line contains a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if "solon_fl.resident.worker" in words and str(folder) in words:
            found.append(int(entry.name))
    return [process for process in found if process != os.getpid()]
