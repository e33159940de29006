"""The pyramids of encoders with transformer blocks at stride 16: ConvMAE and ViT."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from timm.layers.attention import Attention
from timm.layers.norm import LayerNorm2d
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.downstream.pyramid.attention import RelativePositions, attend, interpolated_positions
from fcmae.downstream.pyramid.base import FeaturePyramid
from fcmae.errors import InputError
from fcmae.models import ConvMAEEncoder, ViTEncoder
from fcmae.models.position import positions_at
from sparse_ops import ActiveSites, features_of, linear

PyramidPositions = Literal["interpolated", "relative", "both"]
_STRIDE = 16


class TransformerPyramid(FeaturePyramid):
    """A pyramid whose tokens of stride 16 go through the encoder's transformer blocks, some in windows.

    The position embeddings are trained, as a table for images of one size; those of other sizes take it
    stretched. Absolute ones are added once, relative ones in every block.

    Args:
        encoder: Its weights loaded, without its last norm; its position embeddings are taken from it.
        blocks: Its transformer blocks.
        channels: Width of the four maps.
        prefix: Tokens before the patches in its position embeddings.
        image_size: Pixels (H, W) that the tables are made for.
        window_size: Tokens along the side of a window; 0: all attention is global.
        global_blocks: Blocks, counted from 0, whose attention is global all the same; None: the first and the
            last, and two at even distances between them.
        positions: Position embeddings that are used: "interpolated" absolute ones, "relative" or "both".
        description: See `FeaturePyramid`.
    Raises:
        InputError: a window or a block that does not exist.
    """

    def __init__(
        self,
        encoder: ConvMAEEncoder | ViTEncoder,
        blocks: nn.Sequential,
        channels: tuple[int, int, int, int],
        *,
        prefix: int,
        image_size: tuple[int, int],
        window_size: int,
        global_blocks: tuple[int, ...] | None,
        positions: PyramidPositions,
        description: dict[str, Any],
    ) -> None:
        super().__init__(encoder, channels, description=description)
        if window_size < 0:
            raise InputError(f"window_size: expected 0 or more tokens, got {window_size}.")
        if global_blocks is None:
            global_blocks = tuple(part * (len(blocks) - 1) // 3 for part in range(4))
        if any(not 0 <= block < len(blocks) for block in global_blocks):
            raise InputError(
                f"global_blocks: expected blocks from 0 to {len(blocks) - 1}, got {global_blocks}."
            )
        self.windows = tuple(0 if block in global_blocks else window_size for block in range(len(blocks)))
        grid = token_grid(image_size)
        self.grid = grid
        own, own_grid = encoder.pos_embed.detach()[:, prefix:], encoder.grid
        del encoder.pos_embed
        if positions != "relative":
            table = positions_at(own, grid, own_grid=own_grid, prefix=0, fixed=False)
            self.pos_embed = nn.Parameter(table.clone())
        self.relative: nn.ModuleList | None = None
        if positions != "interpolated":
            head_dim = encoder.dims[-1] // cast(Attention, blocks[0].attn).num_heads
            reach = [(window, window) if window else grid for window in self.windows]
            self.relative = nn.ModuleList(RelativePositions(side, head_dim) for side in reach)
        self.absolute = positions != "relative"
        for block in blocks:
            # The instance's own forward, so that what wraps a block's call, as activation checkpointing does,
            # wraps this one; a wrapping module would change its parameters' names.
            block.forward = partial(attend, block)

    def mix(
        self,
        tokens: Tensor,
        blocks: nn.Sequential,
        sites: ActiveSites | None,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """The blocks over tokens [B, h, w, C], positions added."""
        grid = (tokens.shape[1], tokens.shape[2])
        if self.absolute:
            tokens = tokens + interpolated_positions(
                self.pos_embed, own_grid=self.grid, grid=grid, sizes=[token_grid(size) for size in sizes]
            )
        real = None if sites is None else sites.downsample(2).downsample(2).active
        for number, block in enumerate(blocks):
            relative = None if self.relative is None else self.relative[number]
            tokens = block(tokens, window=self.windows[number], relative=relative, real=real)
        return tokens

    def name_in_encoder(self, name: str) -> str | None:
        """Positions belong to the first layer, relative ones to their block."""
        part, _, rest = name.partition(".")
        if part == "pos_embed":
            return self.first_name
        return f"{self.blocks_name}.{rest}" if part == "relative" else super().name_in_encoder(name)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay spares whatever their shape: positions, as in ViTDet."""
        return {name for name, _ in self.named_parameters() if name.startswith(("pos_embed", "relative."))}

    blocks_name = "blocks"
    """The encoder's own name for its transformer blocks."""
    first_name = "patch_embed.proj.weight"
    """A parameter of its lowest layer."""


class ConvMAEPyramid(TransformerPyramid):
    """ConvMAE's stages E1, E2 and E3, each behind a LayerNorm, and E3's maxima over 2 x 2 sites as E4.

    Args:
        encoder: Its weights loaded.
        **options: Of `TransformerPyramid`.
    Paper: Gao et al. 2022, ConvMAE, section 3.3.
    """

    blocks_name = "blocks3"
    first_name = "patch_embed1.proj.weight"

    def __init__(self, encoder: ConvMAEEncoder, **options: Any) -> None:
        first, second, last = encoder.dims
        super().__init__(encoder, encoder.blocks3, (first, second, last, last), prefix=0, **options)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in encoder.dims)

    def maps(
        self, images: Tensor, sites: ActiveSites | None, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """See `FeaturePyramid`."""
        encoder = cast(ConvMAEEncoder, self.encoder)
        first, second = encoder.convolve(images, sites, "sparse" if sites is None else "masked_dense")
        third = features_of(encoder.patch_embed3(second))
        tokens = linear(third, encoder.patch_embed4.weight, encoder.patch_embed4.bias)
        tokens = self.mix(tokens, encoder.blocks3, sites, sizes)
        stages = (features_of(first), features_of(second), tokens)
        found = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        return [*found, _halved(found[-1], sites)]


class ViTPyramid(TransformerPyramid):
    """ViTDet's simple pyramid: every map is made of the last tokens, behind one LayerNorm.

    Strides 4 and 8 by transposed convolutions, 32 by the maxima over 2 x 2 tokens. The class token is left
    out. Patches of other sides are made into patches of 16 pixels.

    Args:
        encoder: Its weights loaded.
        **options: Of `TransformerPyramid`.
    Paper: Li et al. 2022, ViTDet, section 3.
    """

    def __init__(self, encoder: ViTEncoder, **options: Any) -> None:
        dim = encoder.dims[0]
        super().__init__(encoder, encoder.blocks, (dim // 4, dim // 2, dim, dim), prefix=1, **options)
        del encoder.cls_token
        old = encoder.patch_embed.proj
        assert isinstance(old, nn.Conv2d)
        if encoder.max_stride != _STRIDE:
            projection = nn.Conv2d(encoder.in_chans, dim, _STRIDE, stride=_STRIDE)
            with torch.no_grad():
                projection.weight.copy_(resample_patch_embed(old.weight, [_STRIDE, _STRIDE]))
                assert projection.bias is not None and old.bias is not None
                projection.bias.copy_(old.bias)
            encoder.patch_embed.proj = projection
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
            LayerNorm2d(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
        )
        self.up8 = nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)

    def maps(
        self, images: Tensor, sites: ActiveSites | None, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """See `FeaturePyramid`."""
        encoder = cast(ViTEncoder, self.encoder)
        tokens = encoder.patch_embed.proj(images).permute(0, 2, 3, 1)
        tokens = self.norm(self.mix(tokens, encoder.blocks, sites, sizes))
        channels_first = tokens.permute(0, 3, 1, 2)
        finer = [up(channels_first).permute(0, 2, 3, 1) for up in (self.up4, self.up8)]
        return [*finer, tokens, _halved(tokens, sites)]


def token_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Tokens of an image of (h, w) pixels, the last ones partly covered."""
    return -(-size[0] // _STRIDE), -(-size[1] // _STRIDE)


def _halved(tokens: Tensor, sites: ActiveSites | None) -> Tensor:
    """Maxima over 2 x 2 tokens, of those that are not padding."""
    if sites is not None:
        real = sites.downsample(2).downsample(2).active
        tokens = tokens.masked_fill(~real.unsqueeze(-1), float("-inf"))
    return F.max_pool2d(tokens.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
