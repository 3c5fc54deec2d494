"""Error messages for packages that only the extra `simulation` installs."""

from collections.abc import Iterator
from contextlib import contextmanager

from solon_fl.errors import ConfigurationError

__all__ = ["simulation_extra"]


@contextmanager
def simulation_extra(what: str) -> Iterator[None]:
    """Import packages of the extra `simulation` in this context.

    Parameters
    ----------
    what : str
        The feature that needs them, in the plural, for the error message.

    Raises
    ------
    ConfigurationError
        If a package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{what} need {(error.name or 'a package').partition('.')[0]}, which can't be imported ({error}); "
            "pip install 'solon-fl[simulation]'."
        ) from error
