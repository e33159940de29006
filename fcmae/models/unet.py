"""A UNet as decoder: the encoder's stages, from the coarsest to the finest."""

import torch
from torch import Tensor, nn

from fcmae.errors import InputError
from fcmae.models.blocks import ConvNeXtV2Block
from fcmae.models.convnextv2 import init_weights
from sparse_ops import SparseImage, linear


class UNetStage(nn.Module):
    """Features of one stage of the encoder, added to what comes from the coarser one, and ConvNeXt V2 blocks.

    Args:
        in_channels: Width of the encoder's stage.
        dim: Width of the decoder at this stage.
        depth: Blocks.
        coarser: Width of the decoder at the stage before; None: this is the first.
    """

    def __init__(self, in_channels: int, dim: int, *, depth: int, coarser: int | None) -> None:
        super().__init__()
        self.skip = nn.Linear(in_channels, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.up = None if coarser is None else nn.Linear(coarser, 4 * dim)
        self.blocks = nn.Sequential(*(ConvNeXtV2Block(dim) for _ in range(depth)))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: SparseImage, painted: Tensor | None) -> Tensor:
        """The visible features and the coarser map [B, h / 2, w / 2, coarser] to a map [B, h, w, dim]."""
        projected = x.map(lambda features: linear(features, self.skip.weight, self.skip.bias))
        dense = projected.densify(self.mask_token)
        if self.up is not None and painted is not None:
            # A transposed 2x2 convolution of stride 2.
            dense = dense + depth_to_space(linear(painted, self.up.weight, self.up.bias), 2)
        return self.blocks(dense)


class UNetDecoder(nn.Module):
    """From the coarsest stage to the finest: twice the sites, the encoder's visible features added, blocks.

    Each stage has a projection of the encoder's features, a mask token at its hidden sites, and ConvNeXt V2
    blocks; the finest predicts the pixels. Adding a projection does what a linear layer over both does.

    Args:
        in_channels: Width of each stage of the encoder.
        strides: Pixels per site of each stage, each twice the one before.
        in_chans: Channels of the images.
        dim: Width of the decoder at the last stage; half of it at each finer one.
        depth: Blocks at each stage.
    Raises:
        InputError: the width cannot be halved so often, or the strides do not double.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.1, compares with one; the details are ours.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        in_chans: int,
        dim: int = 512,
        depth: int = 1,
    ) -> None:
        super().__init__()
        halvings = len(in_channels) - 1
        if dim < 1 or dim % 2**halvings:
            raise InputError(
                f"decoder_dim: expected a multiple of {2**halvings} for a unet over {halvings + 1} stages, "
                f"got {dim}. Its width halves at each."
            )
        widths = [dim // 2 ** (halvings - stage) for stage in range(halvings + 1)]
        self.stages = nn.ModuleList(
            UNetStage(channels, width, depth=depth, coarser=coarser)
            for channels, width, coarser in zip(in_channels, widths, [*widths[1:], None], strict=True)
        )
        self.factor = strides[-1] // strides[0]
        self.pred = nn.Linear(widths[0], strides[0] ** 2 * in_chans)
        self.stride = strides[0]
        self.apply(init_weights)

    def forward(self, features: list[SparseImage]) -> Tensor:
        """Visible features of every stage to predictions at the last one's sites, [B, h, w, site_pixels]."""
        painted = None
        for stage, x in zip(reversed(list(self.stages)), reversed(features), strict=True):
            painted = stage(x, painted)
        assert painted is not None
        pixels = depth_to_space(linear(painted, self.pred.weight, self.pred.bias), self.stride)
        return space_to_depth(pixels, self.factor * self.stride)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """[B, h, w, factor**2 * C], a site's numbers ordered (y, x, C), to [B, h * factor, w * factor, C]."""
    batch_size, height, width, numbers = x.shape
    squares = x.reshape(batch_size, height, width, factor, factor, numbers // factor**2)
    return squares.transpose(2, 3).reshape(batch_size, height * factor, width * factor, -1)


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """The inverse of `depth_to_space`."""
    batch_size, height, width, channels = x.shape
    squares = x.reshape(batch_size, height // factor, factor, width // factor, factor, channels)
    return squares.transpose(2, 3).reshape(batch_size, height // factor, width // factor, -1)
