"""Transformer blocks, timm's own, initialised as in MAE."""

from functools import partial
from typing import cast

from timm.models.vision_transformer import Block
from torch import nn

from fcmae.errors import InputError


def transformer_blocks(
    depth: int,
    dim: int,
    *,
    num_heads: int,
    mlp_ratio: float = 4.0,
    drop_path: tuple[float, ...] | None = None,
) -> nn.Sequential:
    """timm's ViT blocks over tokens [B, T, dim], LayerNorm with eps 1e-6, biases everywhere.

    Args:
        depth: Blocks.
        dim: Width.
        num_heads: Attention heads, a divisor of `dim`.
        mlp_ratio: Width of the hidden features as a multiple of `dim`.
        drop_path: Probability of dropping each block's branches, in [0, 1); None: 0.
    Raises:
        InputError: heads, depth or rates do not fit.
    """
    if num_heads < 1 or dim % num_heads or depth < 0:
        raise InputError(
            f"num_heads: expected a divisor of the width {dim} in {depth} blocks, got {num_heads}. "
            "Change the width or the number of heads."
        )
    rates = (0.0,) * depth if drop_path is None else drop_path
    for rate in rates:
        if not 0 <= rate < 1:
            raise InputError(f"drop_path: expected a rate in [0, 1), got {rate:g}.")
    norm_layer = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
    return nn.Sequential(
        *(
            Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=norm_layer)
            for rate in rates
        )
    )


def init_transformer(module: nn.Module) -> None:
    """MAE's initialisation: uniform Xavier for linear layers, zero for their biases; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
