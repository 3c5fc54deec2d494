"""Nodes that speak Flower's protocol with the SuperLink themselves, and may stop at any point of it.

They are threads of the test. They use private names of Flower.
"""

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

from deployment.federation import Federation
from solon_fl.simulations.run._compat import become_server

__all__ = ["FleetNode"]

PAUSE = 1.0  # seconds between two polls for messages


class FleetNode:
    """A node of a federation, which is connected within the context.

    Parameters
    ----------
    federation : Federation
        The federation, which makes and registers a key for the node.
    name : str
        The registered name.
    behave : callable
        Called with the node and each of its messages, one after another.
    """

    def __init__(self, federation: Federation, name: str, behave: Callable[["FleetNode", Message], None]) -> None:
        become_server()
        federation.make_key(name)
        federation.register(name)
        key = federation.key_path(name)
        private_key = load_ssh_private_key(key.read_bytes(), None)
        public_key = private_key.public_key()
        assert isinstance(private_key, EllipticCurvePrivateKey)
        assert isinstance(public_key, EllipticCurvePublicKey)
        self._keys = private_key, public_key
        self._address = federation.superlink.address
        self._certificate = str(federation.superlink.certificate)
        self._behave = behave
        self._leaves = False
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.name = name
        self.over = threading.Event()  # set when the node must end
        self.times_online = 0
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._thread.join(30)

    def restart(self) -> None:
        """Disconnect after this message, and reconnect with the same key."""
        self._leaves = True

    def answer(self, app: ClientApp, message: Message, settings: dict[str, Any]) -> Message:
        """Return an app's reply to a message."""
        context = Context(
            run_id=message.metadata.run_id,
            node_id=self._node_id,
            node_config={},
            state=RecordDict(),
            run_config=settings,
        )
        return app(message, context)

    def announce(self, reply: Message) -> Callable[[], bool]:
        """Announce a reply; return a function that sends the next of its objects, or returns False after the last."""
        reply.metadata.__dict__["_src_node_id"] = self._node_id
        reply.metadata.__dict__["_message_id"] = ""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            objects = get_all_nested_objects(reply)
            wanted, upload = self._push(reply, get_object_tree(reply), 1.0)
        waiting = [(name, thing.deflate()) for name, thing in objects.items() if name in wanted]

        def send_one_more() -> bool:
            if waiting:
                self._push_object(run_id, upload, *waiting.pop(0))
            return bool(waiting)

        return send_one_more

    def send(self, reply: Message) -> None:
        """Announce a reply and send it."""
        send_one_more = self.announce(reply)
        while send_one_more():
            pass

    def _live(self) -> None:
        try:
            while not self.over.is_set():
                self._leaves = False
                self._stay()
        except Exception as error:
            self.error = error

    def _stay(self) -> None:
        """Stay connected until `over` is set, or the node leaves."""
        with http_request_response(self._address, False, self._certificate, self._keys, 3, 20) as connection:
            self._node_id, receive, self._push, _, _, pull_object, self._push_object, confirm = connection
            self.times_online += 1
            while not self._leaves and not self.over.is_set():
                taken = receive()
                if taken is None:
                    self.over.wait(PAUSE)
                    continue
                metadata, tree = taken[0].metadata, taken[1]
                names = [part.object_id for part in iterate_object_tree(tree)]
                contents = pull_objects(names, partial(pull_object, metadata.run_id))
                confirm(metadata.run_id, metadata.message_id)
                message = inflate_object_from_contents(metadata.message_id, contents)
                assert isinstance(message, Message)
                message.metadata.__dict__["_message_id"] = metadata.message_id
                try:
                    self._behave(self, message)
                except RunNotRunningException:  # the run has ended in the meantime
                    pass
                except Exception as error:  # Flower would only log it
                    self.error = error
