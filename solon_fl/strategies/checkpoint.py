"""Checkpoints: a server that is killed at any moment resumes from the last one as if nothing had happened."""

import hashlib
import json
import logging
import os
import platform
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from solon_fl.checks import check_whole
from solon_fl.errors import CheckpointError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Checkpoint", "Checkpoints"]

FORMAT = "solon_fl checkpoint 1"
LOCK = "lock"  # name of the file that says which process uses the folder
logger = logging.getLogger("flwr.checkpoints")


class UnwrittenError(CheckpointError):
    """The folder or its disk is at fault, not the content."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes
    ----------
    round : int
        The last round it includes.
    run : dict
        What must be the same in the run that resumes, as JSON-serializable values.
    notes : dict
        The small part of the state (metrics, groups, the ledger), as JSON-serializable values.
    tensors : dict
        The large part of the state: anything that ``torch.save`` writes and ``torch.load(weights_only=True)`` reads.
        Here and in the others, numpy's numbers and arrays are written as Python's and torch's.
    """

    round: int
    run: dict[str, Any]
    notes: dict[str, Any]
    tensors: dict[str, Any]


class Checkpoints:
    """A folder with the latest checkpoints of one run.

    Give it to a strategy: the strategy saves there, and starts from the newest checkpoint that it finds there. To
    resume a run, start the same program again. To start anew, use another folder. Rounds after the checkpoint are
    repeated.

    Parameters
    ----------
    folder : path
        Created if it does not exist. It must be on a disk that outlives the server, and nobody else may write to it.
    every : int
        Save after every ``every`` rounds, and after the last one.
    keep : int
        Number of checkpoints to keep, at least 2: if the newest is damaged, the one before it is used.

    Notes
    -----
    A checkpoint consists of two files. ``round-000040.pt`` has the tensors, and ``round-000040.json``, written after
    it, has everything else including digests of both. Each file is written under a temporary name, forced to disk, and
    renamed, so a kill at any moment leaves only complete checkpoints. A checkpoint is about as large as the model and
    the optimizer's state together.

    A checkpoint that can't be written does not end the run: the server logs it and tries again at the next one.

    Only one run at a time can use a folder. A second one is refused at its start. The operating system releases the
    lock when the process that holds it ends, for whatever reason. The file ``lock`` remains, and means nothing by
    itself.
    """

    def __init__(self, folder: str | Path, *, every: int = 1, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.every = check_whole("every", every, 1)
        self.keep = check_whole("keep", keep, 2)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Reserve the folder for one run while the context is open.

        Raises
        ------
        CheckpointError
            If another run uses the folder, in this process or any other, or if it can't be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint folder {self.folder} can't be used: {error}; choose a folder that can be written to."
            ) from error
        try:
            self._lock(file)
            yield
        finally:
            if fcntl is not None:  # closing does not unlock if a forked process has the file open, too
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def _lock(self, file: int) -> None:
        """Lock an open file, and write into it which process did."""
        try:
            if fcntl is None:
                raise OSError("this platform has no file locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = " ".join(os.read(file, 200).decode(errors="replace").split()) or "another process"
            raise CheckpointError(
                f"another run ({holder}) uses the checkpoint folder {self.folder}; stop that one, or choose another "
                "folder for this one."
            ) from error
        except OSError as error:  # some file systems have no locks, either
            logger.warning("%s can't be locked (%s): don't let a second run use it.", self.folder, error)
            return
        with suppress(OSError):  # the first save reports a full disk
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete those beyond `keep`.

        Raises
        ------
        CheckpointError
            If the folder can't be written to, or if the content could not be read again.
        """
        name = f"round-{checkpoint.round:06d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_parts()
            tensors_digest = _write(self.folder / f"{name}.pt", _without_numpy(checkpoint.tensors))
            manifest = _as_json(
                {
                    "format": FORMAT,
                    "round": checkpoint.round,
                    "run": checkpoint.run,
                    "tensors": tensors_digest,
                    "notes": checkpoint.notes,
                }
            )
            manifest["digest"] = _digest(manifest)
            _write(self.folder / f"{name}.json", manifest)
            # Newer ones are those that `load` could not use. If they counted, they would push out the whole ones.
            whole = [path for path in self._manifests() if _round_of(path) <= checkpoint.round]
            for old in whole[self.keep :]:
                old.unlink()  # before its tensors: a manifest without tensors counts as damaged, not the reverse
            kept = {path.stem for path in self._manifests()}
            for leftover in self.folder.glob("round-*.pt"):
                if leftover.stem not in kept:
                    leftover.unlink(missing_ok=True)
        except CheckpointError:  # the content is at fault, not the disk
            self._remove_parts()
            raise
        except (OSError, RuntimeError) as error:  # torch's writer also raises RuntimeErrors
            self._remove_parts()
            raise UnwrittenError(
                f"the checkpoint of round {checkpoint.round} can't be written: {error}; the run's state is lost if the "
                "server stops now; free some space or choose another folder."
            ) from error

    def save_if_possible(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint. If the folder can't be written to, only log it: a later round may succeed.

        Raises
        ------
        CheckpointError
            If the content could not be read again.
        """
        try:
            self.save(checkpoint)
        except UnwrittenError as error:
            logger.error("%s Training goes on.", error)

    def load(self, run: Mapping[str, Any], take_over: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that is complete and of the same run; None if the folder has no checkpoints.

        Parameters
        ----------
        run : mapping
            What must be the same in the run that resumes.
        take_over : callable, optional
            Called with the checkpoint. If it raises any exception, the checkpoint is skipped like a damaged one, and
            ``take_over`` is called with the one before it. So it must not rely on the state that it finds.

        Raises
        ------
        CheckpointError
            If there are checkpoints and none can be used. The message gives the reason for the newest.
        """
        reasons = []
        for path in self._manifests():
            try:
                checkpoint = self._read(path, run)
                if take_over is not None:
                    _try(take_over, checkpoint)
            except CheckpointError as error:
                logger.warning("Checkpoint %s is not used: %s", path, error)
                reasons.append(f"{path.name}: {error}")
                continue
            logger.info("Resuming after round %d, from %s", checkpoint.round, self.folder)
            return checkpoint
        if reasons:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be used ({reasons[0]}); nothing was changed there: give the same "
                "settings as the run that wrote them, or another folder to start anew."
            )
        return None

    def _remove_parts(self) -> None:
        """Delete the leftovers of saves that failed or were killed. Those that can't be deleted do no harm."""
        for part in self.folder.glob("round-*.part"):
            with suppress(OSError):
                part.unlink()

    def _manifests(self) -> list[Path]:
        """Return the manifests, newest first."""
        return sorted(self.folder.glob("round-*.json"), key=lambda path: (_round_of(path), path.name), reverse=True)

    def _read(self, path: Path, run: Mapping[str, Any]) -> Checkpoint:
        try:
            manifest = json.loads(path.read_bytes())
            claimed = manifest.pop("digest")
            if manifest["format"] != FORMAT or _digest(manifest) != claimed:
                raise ValueError("its digest does not match")
            for key, kind in (("round", int), ("run", dict), ("tensors", str), ("notes", dict)):
                if type(manifest[key]) is not kind:
                    raise ValueError(f"its {key} is not of type {kind.__name__}")
            if manifest["round"] != _round_of(path):
                raise ValueError("its file name says another round")
        except Exception as error:  # the file may hold anything
            raise CheckpointError(f"damaged, or not a checkpoint of this format ({_kind_and_text(error)})") from error
        _check_same_run(manifest["run"], _as_json(run))
        tensors_path = path.with_suffix(".pt")
        try:
            if _digest_of_file(tensors_path) != manifest["tensors"]:
                raise ValueError("its digest does not match")
            tensors = torch.load(tensors_path, weights_only=True)
        except Exception as error:  # torch raises errors of many kinds, UnpicklingError and RuntimeError among them
            raise CheckpointError(f"{tensors_path.name} is damaged or missing ({_kind_and_text(error)})") from error
        return Checkpoint(round=manifest["round"], run=manifest["run"], notes=manifest["notes"], tensors=tensors)


def _try(take_over: Callable[[Checkpoint], None], checkpoint: Checkpoint) -> None:
    try:
        take_over(checkpoint)
    except CheckpointError:
        raise
    except Exception as error:  # the notes may hold anything: whoever wrote them can also write a matching digest
        raise CheckpointError(f"a run can't resume from its content ({_kind_and_text(error)})") from error


def _round_of(path: Path) -> int:
    """Return the round in the name of a checkpoint's file; -1 if the name has none, so it is not a checkpoint."""
    number = path.name.partition(".")[0].removeprefix("round-")
    return int(number) if number.isdecimal() and len(number) < 20 else -1


def _kind_and_text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content as it will be when read again: keys become strings, tuples become lists."""
    again: dict[str, Any] = json.loads(json.dumps(content, default=_plain))
    return again


def _plain(value: object) -> Any:
    """Return a numpy number or array as JSON-serializable values."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise CheckpointError(
        f"a checkpoint can't hold {value!r}, a {type(value).__name__}; use numbers and strings as settings and metrics."
    )


def _without_numpy(content: Any) -> Any:
    """Return content with numpy's numbers and arrays replaced by Python's numbers and torch's tensors, recursively."""
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, np.ndarray):
        return torch.from_numpy(content.copy())
    if type(content) in (dict, OrderedDict, defaultdict):
        return {key: _without_numpy(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(map(_without_numpy, content))
    return content


def _check_readable(file: IO[bytes]) -> None:
    """Raise CheckpointError if torch would refuse to load the file; the tensors themselves are not read."""
    file.seek(0)
    try:
        torch.load(file, weights_only=True, map_location="meta")
    except Exception as error:  # UnpicklingError, among others
        file.seek(0)
        odd = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(file)) or _kind_and_text(error)
        raise CheckpointError(
            "the optimizer's settings or state hold objects that could not be read from a checkpoint again "
            f"({odd}); use numbers, strings and tensors there, or train without checkpoints."
        ) from error


def _check_same_run(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in {**ours, **theirs}:  # ours first, as they are ordered from general to specific
        if theirs.get(key) != ours.get(key):
            there, here = (repr(run[key]) if key in run else "not set" for run in (theirs, ours))
            raise CheckpointError(f"it belongs to another run: {key} is {there} there and {here} here")


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: Mapping[str, Any]) -> str:
    """Write JSON or tensors so that the file is either complete or absent; return the digest of its bytes."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    with part.open("xb+") as file:  # "x": never write through a file or link that somebody else put there
        if path.suffix == ".json":
            file.write(json.dumps(content).encode())
        else:
            torch.save(content, file)
            _check_readable(file)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    part.replace(path)
    with suppress(OSError):  # some systems can't open a folder (Windows) or force it to disk (some network mounts)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return digest
