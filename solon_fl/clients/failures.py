"""Error text for exceptions that user code raises on a node."""

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
    """Add to an exception's text where it was raised, because Flower sends only that text to the server.

    The text then lists the innermost frames: the file name without its folder, the line number and the source line. It
    holds no values.

    Raises
    ------
    NodeFailedError
        In place of any exception that is not a `SolonError`.
    """
    try:
        yield
    except SolonError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:][-MOST_FRAMES:]  # without this function's frame
        lines = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise NodeFailedError(told + WHERE + "\n".join(line[:MOST_CHARACTERS] for line in lines)) from error
