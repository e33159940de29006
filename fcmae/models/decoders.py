"""Decoders: from the visible features to the pixels of every patch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcmae.models.blocks import ConvNeXtV2Block
from fcmae.models.convnextv2 import init_weights
from fcmae.models.position import fit_positions, positions_at, sincos_positions
from fcmae.models.transformer import init_transformer, transformer_blocks
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


class TransformerDecoder(nn.Module):
    """A projection, a mask token at the hidden sites, fixed positions, ViT blocks and a prediction of pixels.

    Parameters have the names of MAE's decoder: an official pretraining checkpoint's `mask_token` and
    `decoder_*` are found here under the same names, the rest in the encoder.

    Args:
        in_channels: Width of the encoder's last stage.
        site_pixels: Numbers predicted for each site of that stage, `max_stride**2 * in_chans`.
        grid: Sites of an image, (Gh, Gw), whose positions are kept in the state dict; others are computed.
        dim: Width (MAE and ConvMAE: 512), divisible by 4.
        depth: Blocks (MAE and ConvMAE: 8).
        num_heads: Attention heads (MAE and ConvMAE: 16).
        class_token: Whether the encoder gives a class token (MAE: yes, ConvMAE: no).
    Raises:
        InputError: the width fits neither the heads nor the positions.
    Paper: He et al. 2021, MAE, section 3.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        in_channels: int,
        site_pixels: int,
        *,
        grid: tuple[int, int],
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.prefix, self.fixed = grid, int(class_token), True
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", sincos_positions(grid, dim, prefix=self.prefix))
        self.decoder_embed = nn.Linear(in_channels, dim)
        self.decoder_blocks = transformer_blocks(depth, dim, num_heads=num_heads)
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, site_pixels)
        self.apply(init_transformer)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: SparseImage, class_token: Tensor | None = None) -> Tensor:
        """Predictions at all sites, [B, Gh, Gw, site_pixels].

        Args:
            x: Visible features of the encoder's last stage; images may keep different numbers.
            class_token: The encoder's class token, [B, C], if there is one.
        """
        grid = (x.sites.height, x.sites.width)
        embed = self.decoder_embed
        projected = x.map(lambda features: linear(features, embed.weight, embed.bias))
        tokens = projected.densify(self.mask_token.flatten()).flatten(1, 2)
        if class_token is not None:
            first = linear(class_token, embed.weight, embed.bias).unsqueeze(1)
            tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        tokens = tokens + positions_at(
            self.decoder_pos_embed, grid, own_grid=self.grid, prefix=self.prefix, fixed=self.fixed
        )
        tokens = self.decoder_norm(self.decoder_blocks(tokens))[:, self.prefix :]
        return linear(tokens, self.decoder_pred.weight, self.decoder_pred.bias).unflatten(1, grid)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}decoder_pos_embed"
        if key in state_dict:
            fitted, self.fixed = fit_positions(
                state_dict[key], self.decoder_pos_embed, own_grid=self.grid, prefix=self.prefix
            )
            state_dict = {**state_dict, key: fitted}
        super()._load_from_state_dict(state_dict, prefix, *args)
