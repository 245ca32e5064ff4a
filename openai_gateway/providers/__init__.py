"""Where tokens come from: providers by name, found when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from openai_gateway.errors import ModelFailed
from openai_gateway.types import Provider

PROVIDERS = {"mlx": "openai_gateway.providers.mlx:MLXProvider"}
"""Name in models.yaml → "module:Class"; any other "module:Class" may stand in models.yaml itself."""


def find(name: str) -> Callable[..., Provider]:
    """The class of a provider; it is called with a `ModelSpec` and the settings."""
    module, _, attribute = PROVIDERS.get(name, name).partition(":")
    try:
        return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise ModelFailed(f"There is no provider '{name}'; models.yaml may name {', '.join(PROVIDERS)}.") from error
