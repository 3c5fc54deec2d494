"""A ClientApp whose train and evaluate functions are already set; registering another one is an error."""

from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from solon_fl.clients.keeping import downlink_mod
from solon_fl.errors import ConfigurationError

__all__ = ["MixinApp"]

DEFAULT = "default"  # Flower's name for a function without a name
Decorator = Callable[[ClientAppCallable], ClientAppCallable]


class MixinApp(ClientApp):
    """The ClientApp of a `SolonClientMixin`."""

    def serve(self, train: ClientAppCallable, evaluate: ClientAppCallable, mods: list[Mod] | None) -> None:
        """Register the mixin's functions; `mods` wrap training."""
        super().train(mods=[downlink_mod, *(mods or [])])(train)
        super().evaluate(mods=[downlink_mod])(evaluate)

    def train(self, action: str = DEFAULT, *, mods: list[Mod] | None = None) -> Decorator:
        """See `ClientApp.train`."""
        _check_free("train", action, "SolonClientMixin.gradient or SolonClientMixin.update")
        return super().train(action, mods=mods)

    def evaluate(self, action: str = DEFAULT, *, mods: list[Mod] | None = None) -> Decorator:
        """See `ClientApp.evaluate`."""
        _check_free("evaluate", action, "SolonClientMixin.evaluate(model, context)")
        return super().evaluate(action, mods=mods)


def _check_free(category: str, action: str, method: str) -> None:
    if action == DEFAULT:
        raise ConfigurationError(
            f"client_app() already has a function for {category}; got a second @app.{category}(); override {method}, "
            f'or give yours a name: @app.{category}("mine").'
        )
