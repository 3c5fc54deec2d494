"""The parts of a model that the server sends to nodes that keep a copy, and the records that describe them.

A model's entries are fixed (frozen weights, and integers that are not counters), trained, or neither (running
statistics, counters). Every message holds the entries that are neither, under the name "arrays". It holds the fixed
entries unless the node has them already. Of the trained entries it holds what the node lacks: all of them, or patches
of the few rounds since the node's last task. Every reply of a node says what it keeps, as SHA-256 digests
(`solon_fl.wire.model_sha256`).
"""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from solon_fl.errors import ConfigurationError

__all__ = ["FIXED", "MODEL", "PATCHES", "TRAINED", "Kept", "Parts"]

MODEL = "model"  # server -> node: a ConfigRecord of `Parts`; node -> server: a ConfigRecord of `Kept`
FIXED = "model.fixed"  # server -> node: an ArrayRecord of the fixed entries
TRAINED = "model.trained"  # server -> node: an ArrayRecord of the trained entries
PATCHES = "model.patches"  # server -> node: an ArrayRecord of patches, "0", "1", ..., each (bytes,) uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The server's description of the model in a message.

    Attributes
    ----------
    names : tuple of str
        Names of all entries, in the model's order.
    fixed : str
        SHA-256 of the fixed entries; "" if there are none.
    versions : tuple of str
        SHA-256 of versions of the trained entries. The last one is the version to compute with. Before it come the
        versions to which the patches of the message apply, one per patch. () if nodes don't keep trained entries, which
        are then among "arrays".
    """

    names: tuple[str, ...]
    fixed: str = ""
    versions: tuple[str, ...] = ()

    def to_record(self) -> ConfigRecord:
        """Return this as a Flower record. Empty lists are left out, because message_size_mod can't handle them."""
        versions = {"versions": list(self.versions)} if self.versions else {}
        return ConfigRecord({"names": list(self.names), "fixed": self.fixed, **versions})

    @classmethod
    def from_message(cls, message: Message) -> "Parts | None":
        """Return the description in a message from the server; None if it holds the whole model, as usual in Flower.

        Raises
        ------
        ConfigurationError
            If this version does not understand the description.
        """
        record = message.content.config_records.get(MODEL)
        if record is None:
            return None
        values = {"versions": [], **record}
        if set(values) != set(cls.__slots__):
            odd = sorted(set(values) ^ set(cls.__slots__))
            raise ConfigurationError(
                f"the model's record has missing or unknown entries {odd}; install the same solon_fl on server and "
                "nodes."
            )
        names, versions = values["names"], values["versions"]
        assert isinstance(names, list)
        assert isinstance(versions, list)
        return cls(names=tuple(map(str, names)), fixed=str(values["fixed"]), versions=tuple(map(str, versions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A node's report of the entries that it keeps.

    Attributes
    ----------
    version, fixed : str
        SHA-256 of the trained and of the fixed entries; "" if it keeps none.
    lacks : bool
        Whether it lacks a part of the model and so could not do its task.
    """

    version: str = ""
    fixed: str = ""
    lacks: bool = False

    def to_record(self) -> ConfigRecord:
        """Return this as a Flower record."""
        return ConfigRecord({"version": self.version, "fixed": self.fixed, "lacks": self.lacks})
