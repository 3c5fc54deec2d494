"""The errors that solon_fl raises; each is also the standard exception that it resembles.

A message states the rule, then the value that broke it, then the remedy.
"""

from typing import Any

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "GroupFailedError",
    "InvalidReplyError",
    "NodeFailedError",
    "NodesMissingError",
    "PatchError",
    "RefereeError",
    "SolonError",
]


class SolonError(Exception):
    """Any error raised on purpose by solon_fl."""


class ConfigurationError(SolonError, ValueError):
    """A setting is impossible; raised when an object is constructed, never later."""


class InvalidReplyError(SolonError, ValueError):
    """A node's reply is not a share that was asked for; the strategy counts it as an erasure."""


class NodeFailedError(SolonError, RuntimeError):
    """The user's code raised on a node; the text says what and where."""


class NodesMissingError(SolonError, TimeoutError):
    """Fewer nodes connected in time than the run needs."""


class PatchError(SolonError, ValueError):
    """Bytes are no patch for the tensors that they should be applied to, or damaged; nothing was changed."""


class CheckpointError(SolonError, OSError):
    """A checkpoint can't be written, is damaged, or belongs to another run."""


class GroupFailedError(SolonError, RuntimeError):
    """A group could not be decoded and the policy is to stop.

    Attributes
    ----------
    result : flwr.serverapp.strategy.Result or None
        Model and metrics up to the round before, if raised by `SolonStrategy.start`.
    """

    result: Any = None


class RefereeError(GroupFailedError):
    """The referee, whom everybody must be able to trust, failed or answered something that can't be used."""
