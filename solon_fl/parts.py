"""The parts in which a model goes down to nodes that keep some of it, and what messages say of them.

A model's entries are fixed (frozen weights, and integers that nobody counts), trained, or neither (running statistics,
counters). With such a message come the last as they are, under the name "arrays"; the fixed ones unless the node has
them; and of the trained ones what the node lacks: all of them, or patches of the few rounds since it was last asked.
What a node has it says itself, in every reply, by SHA-256 (`solon_fl.wire.model_sha256`).
"""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from solon_fl.errors import ConfigurationError

__all__ = ["FIXED", "MODEL", "PATCHES", "TRAINED", "Kept", "Parts"]

MODEL = "model"  # server -> node: a ConfigRecord of `Parts`; node -> server: one of `Kept`
FIXED = "model.fixed"  # server -> node: an ArrayRecord of the fixed entries
TRAINED = "model.trained"  # server -> node: an ArrayRecord of the trained entries
PATCHES = "model.patches"  # server -> node: an ArrayRecord of patches, "0", "1", ..., each (bytes,) uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the server says of the model in a message.

    Attributes
    ----------
    names : tuple of str
        Of all entries, in the model's order.
    fixed : str
        SHA-256 of the fixed entries; "" if there are none.
    versions : tuple of str
        SHA-256 of the trained entries: the last to compute with, and before it those that the patches of the
        message begin with, one each. () if nobody keeps them, and they are among "arrays".
    """

    names: tuple[str, ...]
    fixed: str = ""
    versions: tuple[str, ...] = ()

    def to_record(self) -> ConfigRecord:
        """Return this as a Flower record. Empty lists are no entry: message_size_mod can't tell their size."""
        versions = {"versions": list(self.versions)} if self.versions else {}
        return ConfigRecord({"names": list(self.names), "fixed": self.fixed, **versions})

    @classmethod
    def from_message(cls, message: Message) -> "Parts | None":
        """Return what a message from the server says; None if it holds the whole model, as Flower's messages do.

        Raises
        ------
        ConfigurationError
            If it says something that this version does not understand.
        """
        record = message.content.config_records.get(MODEL)
        if record is None:
            return None
        values = {"versions": [], **record}
        if set(values) != set(cls.__slots__):
            odd = sorted(set(values) ^ set(cls.__slots__))
            raise ConfigurationError(
                f"what comes with the model has missing or unknown entries {odd}; install the same solon_fl on server "
                "and nodes."
            )
        names, versions = values["names"], values["versions"]
        assert isinstance(names, list)
        assert isinstance(versions, list)
        return cls(names=tuple(map(str, names)), fixed=str(values["fixed"]), versions=tuple(map(str, versions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a node says that it keeps.

    Attributes
    ----------
    version, fixed : str
        SHA-256 of trained and fixed entries; "" for none.
    lacks : bool
        Whether it lacks some of the model, and so could not do its task.
    """

    version: str = ""
    fixed: str = ""
    lacks: bool = False

    def to_record(self) -> ConfigRecord:
        """Return this as a Flower record."""
        return ConfigRecord({"version": self.version, "fixed": self.fixed, "lacks": self.lacks})
