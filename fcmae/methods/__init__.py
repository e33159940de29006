"""Pretraining methods: mask, encode, decode or compare, loss."""

import inspect
from typing import Any

from torch import nn

from fcmae.config import DataConfig, ModelConfig
from fcmae.errors import InputError
from fcmae.methods.fcmae import FCMAE, init_as_original
from fcmae.methods.output import MethodOutput
from fcmae.models import ConvNeXtV2Encoder, create_backbone, require_name

__all__ = ["FCMAE", "MethodOutput", "create_method", "from_config"]

_BACKBONE_OPTIONS = (
    "in_chans",
    "backend",
    "grn_scope",
    "drop_path",
    "depths",
    "dims",
    "stem_stride",
    "kernel_size",
    "mlp_ratio",
)


def create_method(
    name: str,
    *,
    backbone: str | nn.Module,
    image_size: int | tuple[int, int],
    init: str = "002",
    **options: Any,
) -> FCMAE:
    """Build a pretraining method.

    Args:
        name: "fcmae".
        backbone: An encoder's name, or an encoder.
        image_size: Side of a square image, or (H, W), in pixels.
        init: "002", normal weights of standard deviation 0.02; or "original", the authors' accidental 1.0.
        **options: The method's (`patch_size`, `mask_ratio`, `decoder_dim`, `decoder_depth`, `norm_pix_loss`,
            `execution`; see `FCMAE`) and, for a backbone given by name, those of `create_backbone`.
    Raises:
        InputError: unknown method, backbone or option, or a combination that does not fit.
    """
    require_name("method", "the name of a method", name, ["fcmae"])
    require_name("init", "an initialisation", init, ["002", "original"])
    backbone_options = {key: options.pop(key) for key in _BACKBONE_OPTIONS if key in options}
    if isinstance(backbone, str):
        backbone = create_backbone(backbone, **backbone_options)
    elif backbone_options:
        raise InputError(f"backbone: expected a name beside {', '.join(backbone_options)}, got a module.")
    if not isinstance(backbone, ConvNeXtV2Encoder):
        raise InputError(
            f"backbone: expected a ConvNeXt V2 encoder for fcmae, got {type(backbone).__name__}."
        )
    known = list(inspect.signature(FCMAE).parameters)[1:]
    for option in options:
        require_name("create_method", f"an option of {name}", option, [*known, *_BACKBONE_OPTIONS])
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    method = FCMAE(backbone, image_size=size, **options)
    if init == "original":
        init_as_original(method)
    return method


def from_config(model: ModelConfig, data: DataConfig) -> FCMAE:
    """The method that a run's configuration describes."""
    return create_method(
        model.method,
        backbone=model.backbone,
        image_size=data.size,
        in_chans=data.in_chans,
        init=model.init,
        patch_size=model.patch_size,
        mask_ratio=model.mask_ratio,
        decoder_dim=model.decoder_dim,
        decoder_depth=model.decoder_depth,
        norm_pix_loss=model.norm_pix_loss,
        execution=model.execution,
        backend=model.backend,
        grn_scope=model.grn_scope,
        drop_path=model.drop_path,
        depths=model.depths,
        dims=model.dims,
        stem_stride=model.stem_stride,
    )
