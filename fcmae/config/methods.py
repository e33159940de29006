"""The `model` section of every method, in one table."""

from collections.abc import Callable

from fcmae.config.convmae import ConvMAEConfig
from fcmae.config.mae import MAEConfig
from fcmae.config.model import FCMAEConfig, ModelConfig
from fcmae.config.msn import MSNConfig

METHOD_CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    "fcmae": FCMAEConfig,
    "convmae": ConvMAEConfig,
    "mae": MAEConfig,
    "msn": MSNConfig,
}
"""The defaults of the `model` section of each method."""
