"""Why a message can't be handed to a worker."""

__all__ = ["ResidentError"]


class ResidentError(Exception):
    """There can be no worker here; the message is computed in Flower's own process."""
