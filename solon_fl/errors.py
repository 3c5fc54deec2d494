"""The errors that solon_fl raises. Each is also a subclass of the standard exception that it resembles.

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
    """The base class of all errors that solon_fl raises on purpose."""


class ConfigurationError(SolonError, ValueError):
    """A setting or an argument is invalid."""


class InvalidReplyError(SolonError, ValueError):
    """A node's reply is not the requested share; the strategy counts it as an erasure."""


class NodeFailedError(SolonError, RuntimeError):
    """The user's code raised an exception on a node; the message says which and where."""


class NodesMissingError(SolonError, TimeoutError):
    """Fewer nodes connected in time than the run needs."""


class PatchError(SolonError, ValueError):
    """A patch is damaged, or belongs to other tensors than those it should be applied to; no tensor was changed."""


class CheckpointError(SolonError, OSError):
    """A checkpoint can't be written, is damaged, or belongs to another run."""


class GroupFailedError(SolonError, RuntimeError):
    """A group could not be decoded, and the policy is to stop the run.

    Attributes
    ----------
    result : flwr.serverapp.strategy.Result or None
        Model and metrics up to the previous round, if raised by `SolonStrategy.start`.
    """

    result: Any = None


class RefereeError(GroupFailedError):
    """The referee, which must be trustworthy, failed or returned an unusable result."""
