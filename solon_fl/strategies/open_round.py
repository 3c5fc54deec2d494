"""A round under way, between the loop (loop.py) and a strategy's own round (rounds.py)."""

import time
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, Message, Metadata

from solon_fl.strategies.downlink import ModelSender
from solon_fl.strategies.exchange import reply_keys
from solon_fl.strategies.rounds import Aggregated, Round

__all__ = ["OpenRound"]

Key = TypeVar("Key", bound=Hashable)


class OpenRound(Generic[Key]):
    """A round under way: the messages sent, and the server's seconds and bytes so far.

    It handles nodes that lack the model: the strategy's round only sees their replies once they were sent the whole
    model.
    """

    def __init__(self, number: int, played: Round[Key], arrays: ArrayRecord, sender: ModelSender) -> None:
        self.number = number
        self._sender = sender
        self._lacking: list[Key] = []  # keys of nodes that need the whole model
        self.addressed: dict[Key, Metadata] = {}
        self.bytes_out = 0
        self.seconds_receiving = 0.0
        self._round = played
        self.first_messages = self._addressed(played.messages(arrays))

    def receive(self, batch: list[tuple[Key, Message]]) -> bool:
        """Hand over all replies except those that say that the node lacks the model."""
        started = time.monotonic()
        lacking = {key for key, reply in batch if self._sender.learn(self.addressed[key].dst_node_id, reply)}
        self._lacking += [key for key, _ in batch if key in lacking]
        usable = [(key, reply) for key, reply in batch if key not in lacking]
        batch.clear()  # so that replies are freed as soon as the round drops them
        enough = self._round.receive(usable) if usable or not lacking else False
        self.seconds_receiving += time.monotonic() - started
        return enough

    def follow_up(self, late: bool) -> dict[Key, Message]:
        """Return further messages."""
        started = time.monotonic()
        lacking, self._lacking = self._lacking, []
        again = self._addressed(self._round.again(lacking)) if lacking else {}
        more = self._addressed(self._round.follow_up(late and not again))  # not late: they just got the model
        self.seconds_receiving += time.monotonic() - started
        return again | more

    def patience(self) -> float:
        """Return the seconds without enough replies after which it is late."""
        return self._round.patience()

    def close(self) -> Aggregated:
        """Return the aggregate of the round."""
        return self._round.close()

    def keyed(self, replies: Iterable[Message]) -> list[tuple[Key, Message]]:
        """Return the replies to messages of this round, each with its key."""
        key_of = reply_keys(self.addressed)
        by_node = {metadata.dst_node_id: key for key, metadata in self.addressed.items()}
        batch = []
        for reply in replies:
            key = key_of.get(reply.metadata.reply_to_message_id)
            if key is None and not key_of:  # with a Grid that copies messages, their ids are unknown here
                key = by_node.get(reply.metadata.src_node_id)
            if key is not None:
                batch.append((key, reply))
        return batch

    def _addressed(self, messages: dict[Key, Message]) -> dict[Key, Message]:
        """Record the messages' addressees and count the bytes of model in them."""
        self.addressed |= {key: message.metadata for key, message in messages.items()}
        for message in messages.values():
            models = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
            self.bytes_out += sum(len(array.data) for model in models for array in model.values())
        return messages
