"""Masked-image pretraining of networks with convolutions, on the visible sites only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcmae.convert import load_weights
    from fcmae.methods import create_method
    from fcmae.models import create_backbone

__all__ = ["create_backbone", "create_method", "load_weights"]

_HOMES = {"create_backbone": "models", "create_method": "methods", "load_weights": "convert"}


def __getattr__(name: str) -> Any:
    """Import a public function on first use: `fcmae --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fcmae' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"fcmae.{_HOMES[name]}"), name)
