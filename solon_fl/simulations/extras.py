"""What the extra `simulation` installs, and only some of the simulation needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from solon_fl.errors import ConfigurationError

__all__ = ["simulation_extra"]


@contextmanager
def simulation_extra(what: str) -> Iterator[None]:
    """Import in this context what the extra `simulation` installs.

    Parameters
    ----------
    what : str
        The plural name of what needs it, for the error message.

    Raises
    ------
    ConfigurationError
        If something is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{what} need {(error.name or 'a package').partition('.')[0]}, which can't be imported ({error}); "
            "pip install 'solon-fl[simulation]'."
        ) from error
