"""What a node says when the user's code raised."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from solon_fl.errors import NodeFailedError, SolonError
from solon_fl.task import WHERE

__all__ = ["explained"]

MOST_FRAMES = 12
MOST_CHARACTERS = 160  # of a line


@contextmanager
def explained() -> Iterator[None]:
    """Let an exception tell where it was raised: of an error, Flower sends no more than its text to the server.

    The text then holds the innermost frames: each file's name without its folder, the line and its code. No values.

    Raises
    ------
    NodeFailedError
        In place of the exception, unless that is one of solon_fl's own, which say enough.
    """
    try:
        yield
    except SolonError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:][-MOST_FRAMES:]  # the first is this one
        lines = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise NodeFailedError(told + WHERE + "\n".join(line[:MOST_CHARACTERS] for line in lines)) from error
