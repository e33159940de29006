"""Small encoders of every family, as weights that a pretraining checkpoint would hold."""

from typing import Any

import torch
from torch import Tensor, nn

from fcmae.downstream import FeaturePyramid, create_pyramid
from fcmae.models import create_backbone

SIZES: dict[str, dict[str, Any]] = {
    "convnextv2_atto": {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)},
    "convmae_small": {"depths": (1, 1, 5), "dims": (8, 12, 16), "num_heads": 2},
    "vit_tiny_patch16": {"depths": (5,), "dims": (16,), "num_heads": 2},
}
TRANSFORMERS = ("convmae_small", "vit_tiny_patch16")


def encoder_weights(backbone: str) -> dict[str, Tensor]:
    """Random weights under our names: no GRN is an identity, no bias zero. Positions are the fixed ones."""
    encoder = create_backbone(backbone, **SIZES[backbone])
    state = {name: tensor + 0.2 * torch.randn_like(tensor) for name, tensor in encoder.state_dict().items()}
    if "pos_embed" in state:
        state["pos_embed"] = encoder.state_dict()["pos_embed"]
    return {f"encoder.{name}": tensor for name, tensor in state.items()}


def small_pyramid(backbone: str, **options: Any) -> FeaturePyramid:
    """A pyramid on such weights, in evaluation mode, its own parameters random, too."""
    options.setdefault("weights", encoder_weights(backbone))
    pyramid = create_pyramid(backbone, num_heads=SIZES[backbone].get("num_heads"), **options).eval()
    for name, parameter in pyramid.named_parameters():
        if name.startswith(("norm", "up", "relative")):
            nn.init.normal_(parameter, std=0.5)
    return pyramid
