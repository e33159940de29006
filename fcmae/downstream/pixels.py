"""Pixels as the networks want them."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from fcmae.config import PixelConfig
from fcmae.data import mean_std


def normalised(pixels: Tensor, config: PixelConfig) -> Tensor:
    """Pixels [..., C, H, W], uint8 or floats in [0, 1], by the data's mean and deviation, float32."""
    mean, std = (values.to(pixels.device)[:, None, None] for values in mean_std(config))
    return (TF.to_dtype(pixels, torch.float32, scale=True) - mean) / std
