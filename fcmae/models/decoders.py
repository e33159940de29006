"""Decoders: from the visible features to the pixels of every patch."""

import torch
from torch import Tensor, nn

from fcmae.models.blocks import ConvNeXtV2Block
from fcmae.models.convnextv2 import init_weights
from sparse_ops import SparseImage, linear


class ConvNeXtDecoder(nn.Module):
    """A projection, a mask token at the hidden sites, ConvNeXt V2 blocks and a prediction of pixels.

    Args:
        in_channels: Width of the encoder's last stage.
        site_pixels: Numbers predicted for each site of that stage, `max_stride**2 * in_chans`.
        dim: Width of the decoder (the paper: 512).
        depth: Blocks (the paper: 1).
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.1.
    """

    def __init__(self, in_channels: int, site_pixels: int, *, dim: int = 512, depth: int = 1) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.Sequential(*(ConvNeXtV2Block(dim) for _ in range(depth)))
        self.pred = nn.Linear(dim, site_pixels)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_weights)

    def forward(self, x: SparseImage) -> Tensor:
        """Visible features of the encoder's last stage to predictions at all of its sites, [B, h, w,
        site_pixels].
        """
        projected = x.map(lambda features: linear(features, self.proj.weight, self.proj.bias))
        painted = self.blocks(projected.densify(self.mask_token))
        return linear(painted, self.pred.weight, self.pred.bias)
