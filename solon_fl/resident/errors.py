"""The error for messages that can't be handed to a worker."""

__all__ = ["ResidentError"]


class ResidentError(Exception):
    """A worker can't be used, so the message is computed in Flower's own process."""
