"""The folder of the workers' sockets, which is private to this user and cleared of files of dead workers."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from solon_fl.resident.errors import ResidentError
from solon_fl.resident.processes import is_alive

__all__ = ["Folder", "opened"]

LOCK_SECONDS = 10.0
DESCRIPTORS = Path("/proc/self/fd")
KEY = ".key"


class Folder:
    """The folder, opened and locked; see `opened`.

    A worker has two files: its socket, ``<SuperExec's process id>-<start time>-<digest>``, and its key.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def address(self, name: str) -> str:
        """Return the address of a socket in the folder; on Linux, it is short even if the folder's path is long."""
        folder = DESCRIPTORS / str(self._descriptor) if DESCRIPTORS.exists() else self._path
        return str(folder / name)

    def inode(self, name: str) -> int:
        """Return the inode of a file in the folder, or 0 if there is no such file."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return 0

    def write_key(self, name: str, key: bytes) -> None:
        """Write the key of a worker, for processes that have messages for it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(name + KEY, flags, 0o600, dir_fd=self._descriptor), "wb") as file:
            file.write(key)

    def read_key(self, name: str) -> bytes:
        """Return the key of a worker."""
        with open(os.open(name + KEY, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._descriptor), "rb") as file:
            return file.read()

    def remove(self, name: str) -> None:
        """Delete the files of a worker."""
        for file in (name, name + KEY):
            with suppress(FileNotFoundError):
                os.unlink(file, dir_fd=self._descriptor)

    def tidy(self) -> None:
        """Delete the files of workers whose SuperExec has ended."""
        for file in os.listdir(self._descriptor):
            process, _, rest = file.partition("-")
            if not (process.isdigit() and is_alive(int(process), rest.partition("-")[0])):
                self.remove(file.removesuffix(KEY))

    def remove_if_empty(self) -> None:
        """Delete the folder, unless a worker has files there."""
        with suppress(OSError):
            os.rmdir(self._path)


@contextmanager
def opened() -> Iterator[Folder]:
    """Open the folder, making it if it is missing, and lock it; no other process opens or removes it meanwhile.

    Raises
    ------
    ResidentError
        If the folder can't be made, belongs to another user, is open to others, or is not a folder.
    """
    path = Path(tempfile.gettempdir()) / f"solon-resident-{os.geteuid()}"
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if path.parent.is_dir():
                continue  # the folder was removed in between
            raise ResidentError(f"the folder {path.parent} must exist; set TMPDIR to one that does.") from None
        except OSError as error:
            raise ResidentError(
                f"{path} must be a folder of this user; got {error.strerror or error}; remove it, or set TMPDIR."
            ) from None
        try:
            _check(path, os.fstat(descriptor))
            _lock(path, descriptor, deadline)
            if _is_at(path, descriptor):
                yield Folder(path, descriptor)
                return
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the opened folder is still at this path; the process that held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _check(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise ResidentError(
            f"{path} must belong to this user, {os.geteuid()}; got user {found.st_uid}; ask its owner to remove it, "
            "or set TMPDIR."
        )
    if found.st_mode & 0o077:
        raise ResidentError(
            f"{path} must be closed to other users; got mode {found.st_mode & 0o777:o}; remove it, or set TMPDIR."
        )


def _lock(path: Path, descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ResidentError(
                    f"{path} must become free within {LOCK_SECONDS:.0f} s; another process keeps it locked; end that "
                    "process."
                ) from None
            time.sleep(0.01)
