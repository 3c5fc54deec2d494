"""Storage for the parts of the model that a node keeps between messages, and assembly of the model from them."""

import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from solon_fl.downlink.codec import apply_patch
from solon_fl.errors import PatchError
from solon_fl.parts import FIXED, MODEL, PATCHES, TRAINED, Kept, Parts
from solon_fl.task import ARRAYS
from solon_fl.wire import model_sha256, real_view, to_array, trusted_tensor

__all__ = ["ModelStore", "downlink_mod", "keep_in_memory"]

FOLDER = "SOLON_FL_STATE"  # an environment variable
MOST = {"fixed": 2, "trained": 3}  # models to keep of each kind
ONE_DAY = 86_400.0  # seconds until another run's models are removed
Kind = Literal["fixed", "trained"]
Arrays = Mapping[str, Array]
logger = logging.getLogger("flwr")


class ModelStore:
    """A store for the latest parts of models, in memory and optionally in a folder, under their SHA-256.

    Many nodes may share a store or a folder; the parts that they have in common are stored once. A part read from a
    folder is used only if its SHA-256 is correct.

    Parameters
    ----------
    folder : Path, optional
        Created on first use, with access for this user only. Other users must not be able to write to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[Kind, OrderedDict[str, Arrays]] = {"fixed": OrderedDict(), "trained": OrderedDict()}
        self._lock = threading.Lock()

    def get(self, kind: Kind, sha256: str) -> Arrays | None:
        """Return the arrays with this SHA-256, by name, or None if they are not stored."""
        with self._lock:
            if sha256 in self._memory[kind]:
                self._memory[kind].move_to_end(sha256)
                return self._memory[kind][sha256]
        arrays = self._read(kind, sha256)
        if arrays is not None:
            self._remember(kind, sha256, arrays)
        return arrays

    def put(self, kind: Kind, sha256: str, arrays: Arrays) -> None:
        """Store arrays under their SHA-256, and drop older ones."""
        self._remember(kind, sha256, arrays)
        if self._folder is not None:
            try:
                self._write(self._folder, kind, sha256, arrays)
            except (OSError, RuntimeError) as error:  # torch raises RuntimeError if a disk is full
                logger.warning(
                    "The model can't be kept in %s (%s), so the server must send all of it again; set %s to a writable "
                    "folder.",
                    *(self._folder, error, FOLDER),
                )

    def _remember(self, kind: Kind, sha256: str, arrays: Arrays) -> None:
        with self._lock:
            kept = self._memory[kind]
            kept[sha256] = arrays
            kept.move_to_end(sha256)
            while len(kept) > MOST[kind]:
                kept.popitem(last=False)

    def _read(self, kind: Kind, sha256: str) -> Arrays | None:
        if self._folder is None:
            return None
        path = self._folder / f"{kind}-{sha256}.pt"
        try:
            _check_private(path.parent)
            tensors: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
            arrays = {name: to_array(tensor) for name, tensor in tensors.items()}
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("The model kept in %s can't be read and is not used: %s", path, error)
            return None
        except Exception:  # torch may raise anything for a damaged file
            arrays = {}
        is_whole = model_sha256(ArrayRecord(dict(arrays))) == sha256
        with suppress(OSError):
            if is_whole:
                os.utime(path)
            else:
                path.unlink()  # otherwise it would never be replaced
        if is_whole:
            return arrays
        logger.warning("The model kept in %s is damaged and is not used.", path)
        return None

    def _write(self, folder: Path, kind: Kind, sha256: str, arrays: Arrays) -> None:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{kind}-{sha256}.pt"
        if path.exists():  # another node on this machine wrote it
            os.utime(path)
        else:
            handle, part = tempfile.mkstemp(suffix=".part", dir=folder)  # process ids aren't unique across machines
            os.close(handle)
            try:
                with open(part, "wb") as file:  # torch 2.6 does not notice a full disk if it is given a path
                    torch.save({name: trusted_tensor(array) for name, array in arrays.items()}, file)
                os.replace(part, path)
            finally:
                Path(part).unlink(missing_ok=True)
        _remove_old(folder, kind)


def _check_private(folder: Path) -> None:
    """Raise OSError unless the folder belongs to this user and nobody else can write to it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"{folder} belongs to another user, or others may write to it")


def _remove_old(folder: Path, kind: Kind) -> None:
    """Remove surplus models from a run's folder, and the folders of runs that ended long ago."""
    with suppress(OSError):  # other nodes on this machine remove files, too
        by_age = sorted(folder.glob(f"{kind}-*.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[MOST[kind] :]:
            path.unlink(missing_ok=True)
        for path in folder.glob("*.part"):
            if time.time() - path.stat().st_mtime > ONE_DAY:
                path.unlink(missing_ok=True)
        for other in folder.parent.iterdir():
            if other != folder and time.time() - other.stat().st_mtime > ONE_DAY:
                shutil.rmtree(other, ignore_errors=True)


_in_memory = ModelStore()
_on_disk: dict[int, ModelStore] = {}  # by run
_process_stays = False


def keep_in_memory() -> None:
    """Declare that this process lives as long as its nodes, so that they keep their models in memory only."""
    global _process_stays  # a property of the process
    _process_stays = True


def store_of(context: Context) -> ModelStore:
    """Return a node's store: in memory if the process stays, otherwise in a folder of the run as well.

    A SuperNode starts a process for every message, hence the folder. Its parent is the environment variable
    SOLON_FL_STATE or, if that is not set, a folder for temporary files. If the variable is empty, no folder is used.
    """
    if _process_stays or os.environ.get(FOLDER) == "":
        return _in_memory
    if context.run_id not in _on_disk:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        root = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / f"solon_fl-{user}")
        _on_disk[context.run_id] = ModelStore(root / str(context.run_id))
    return _on_disk[context.run_id]


def downlink_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Assemble the whole model from the parts of it that the server sends (a Flower mod).

    `SolonClientMixin.client_app`, `solon_mod`, `draco_client_app` and `signum_mod` include it. Put it on functions of
    your own, before all other mods, if a strategy with ``downlink="delta"`` or with frozen weights sends them a model:
    ``@app.train(mods=[downlink_mod])``, ``@app.evaluate(mods=[downlink_mod])``.

    Notes
    -----
    Cost: each process decodes a patch, copies the trained entries and computes their SHA-256 once a round. A message
    that holds the whole model costs nothing. Memory: up to 3 models.
    """
    parts = Parts.from_message(message)
    if parts is None:
        return call_next(message, context)
    store = store_of(context)
    arrays = _whole(message, parts, store)
    if arrays is None:
        fixed = parts.fixed if store.get("fixed", parts.fixed) is not None else ""
        return Message(RecordDict({MODEL: Kept(fixed=fixed, lacks=True).to_record()}), reply_to=message)
    for name in (MODEL, FIXED, TRAINED, PATCHES):
        message.content.pop(name, None)
    message.content[ARRAYS] = arrays
    reply = call_next(message, context)
    if reply is not None and reply.has_content():
        version = parts.versions[-1] if parts.versions else ""
        reply.content[MODEL] = Kept(version=version, fixed=parts.fixed).to_record()
    return reply


def _whole(message: Message, parts: Parts, store: ModelStore) -> ArrayRecord | None:
    """Return the model that a message describes, or None if the node lacks some of it."""
    records = message.content.array_records
    fixed, trained = _fixed(records.get(FIXED), parts, store), _trained(records, parts, store)
    if fixed is None or trained is None:
        return None
    arrays = {**records[ARRAYS], **fixed, **trained}
    return ArrayRecord({name: arrays[name] for name in parts.names})


def _fixed(sent: ArrayRecord | None, parts: Parts, store: ModelStore) -> Arrays | None:
    if not parts.fixed:
        return {}
    kept = store.get("fixed", parts.fixed)
    if kept is None and sent is not None and model_sha256(sent) == parts.fixed:
        kept = dict(sent)
        store.put("fixed", parts.fixed, kept)
    return kept


def _trained(records: Mapping[str, ArrayRecord], parts: Parts, store: ModelStore) -> Arrays | None:
    if not parts.versions:
        return {}
    *before, version = parts.versions
    if (kept := store.get("trained", version)) is not None:
        return kept
    if TRAINED in records:
        made: Arrays | None = dict(records[TRAINED])
    else:
        made = _patched(records.get(PATCHES, ArrayRecord()), before, store)
    if made is None or model_sha256(ArrayRecord(dict(made))) != version:
        return None
    store.put("trained", version, made)
    return made


def _patched(patches: ArrayRecord, before: list[str], store: ModelStore) -> Arrays | None:
    """Apply the patches to the latest stored version that one of them starts from; None if there is none."""
    for number in range(len(before) - 1, -1, -1):
        kept = store.get("trained", before[number])
        if kept is None:
            continue
        tensors = {name: trusted_tensor(array) for name, array in kept.items()}
        try:
            for patch in list(patches.values())[number:]:
                apply_patch(patch.numpy().tobytes(), [real_view(tensor) for tensor in tensors.values()])
        except PatchError as error:
            logger.warning("A patch of the model does not fit the version that is kept here: %s", error)
            return None
        return {name: to_array(tensor) for name, tensor in tensors.items()}
    return None
