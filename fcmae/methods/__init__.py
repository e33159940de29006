"""Pretraining methods: mask, encode, decode or compare, loss."""

import inspect
from dataclasses import fields
from typing import Any

from torch import nn

from fcmae.config import DataConfig, ModelConfig
from fcmae.errors import InputError
from fcmae.methods.convmae import ConvMAE
from fcmae.methods.fcmae import FCMAE
from fcmae.methods.mae import MAE
from fcmae.methods.masked_autoencoder import MaskedAutoencoder
from fcmae.methods.method import Method
from fcmae.methods.msn import MSN
from fcmae.methods.output import MethodOutput, Reconstruction
from fcmae.models import BACKBONE_OPTIONS, create_backbone, require_name

__all__ = [
    "FCMAE",
    "MAE",
    "METHODS",
    "MSN",
    "ConvMAE",
    "MaskedAutoencoder",
    "Method",
    "MethodOutput",
    "Reconstruction",
    "create_method",
    "from_config",
]

METHODS: dict[str, type[Method]] = {"fcmae": FCMAE, "convmae": ConvMAE, "mae": MAE, "msn": MSN}
"""Each takes an encoder of its `encoder_type`, `image_size`, and options of its own."""


def create_method(
    name: str, *, backbone: str | nn.Module, image_size: int | tuple[int, int], **options: Any
) -> Method:
    """Build a pretraining method.

    Args:
        name: "fcmae", "convmae", "mae" or "msn".
        backbone: An encoder's name, or an encoder.
        image_size: Side of a square image, or (H, W), in pixels.
        **options: The method's (`mask_ratio`, `norm_pix_loss`, ...; see its class) and, for a backbone given
            by name, those of `create_backbone`.
    Raises:
        InputError: unknown method, backbone or option, or a combination that does not fit.
    """
    require_name("method", "the name of a method", name, METHODS)
    method = METHODS[name]
    known = [option for option in inspect.signature(method).parameters if option != "encoder"]
    for option in options:
        require_name("create_method", f"an option of {name}", option, [*known, *BACKBONE_OPTIONS])
    backbone_options = {key: options.pop(key) for key in BACKBONE_OPTIONS if key in options}
    if isinstance(backbone, str):
        backbone = create_backbone(backbone, **backbone_options)
    elif backbone_options:
        raise InputError(f"backbone: expected a name beside {', '.join(backbone_options)}, got a module.")
    if not isinstance(backbone, method.encoder_type):
        raise InputError(
            f"backbone: expected a {method.encoder_type.__name__} for {name}, got {type(backbone).__name__}."
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return method(backbone, image_size=size, **options)  # pyright: ignore[reportCallIssue]


def from_config(model: ModelConfig, data: DataConfig) -> Method:
    """The method that a run's configuration describes: each field is an option of the same name."""
    options = {field.name: getattr(model, field.name) for field in fields(model)}
    return create_method(options.pop("method"), image_size=data.size, in_chans=data.in_chans, **options)
