"""What goes wrong with a deployment."""

__all__ = ["FederationError"]


class FederationError(RuntimeError):
    """The deployment, or a run on it, failed; the message says how, in plain words."""
