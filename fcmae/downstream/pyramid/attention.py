"""Transformer blocks over a grid of tokens: global or in windows, padding hidden, relative positions."""

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.models.position import positions_at


class RelativePositions(nn.Module):
    """What a query adds to its attention for the rows and the columns that a key is away; 0 at the start.

    With q the query, h and w the tables, a key dy rows and dx columns away gets q . h[dy] + q . w[dx].
    Distances beyond the tables take their last entry, so that no position depends on the size of the image or
    on its padding (ViTDet interpolates the tables instead).

    Args:
        grid: Tokens that the tables are made for, (rows, columns): distances below these.
        head_dim: Width of a query.
    Paper: Li et al. 2022, MViTv2, section 4.1; Li et al. 2022, ViTDet, section 3.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, head_dim))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, head_dim))

    def forward(self, queries: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries [B, heads, L, head_dim] of a grid to what their attention gains, [B, heads, L, L]."""
        squares = queries.unflatten(2, grid)
        rows = torch.einsum("bnhwc,hkc->bnhwk", squares, _by_distance(self.rows, grid[0]))
        columns = torch.einsum("bnhwc,wkc->bnhwk", squares, _by_distance(self.columns, grid[1]))
        gain = rows.unsqueeze(-1) + columns.unsqueeze(-2)  # [B, heads, h, w, key's row, key's column]
        return gain.flatten(4, 5).flatten(2, 3)


def _by_distance(table: Tensor, side: int) -> Tensor:
    """[2 * reach + 1, C] -> the entry of every (query, key) along one side, [side, side, C]."""
    reach = table.shape[0] // 2
    place = torch.arange(side, device=table.device)
    return table[(place[:, None] - place).clamp(-reach, reach) + reach]


def attend(
    block: nn.Module, tokens: Tensor, *, window: int, relative: nn.Module | None, real: Tensor | None
) -> Tensor:
    """One of timm's blocks over a grid of tokens.

    Windows are cut from the top left corner; the last ones reach over the edge. No token attends to what lies
    beyond the edge or in the padding.

    Args:
        block: A `Block` of timm, as `transformer_blocks` makes them: without layer scale.
        tokens: [B, h, w, C].
        window: Side of the squares of tokens that attend to each other; 0: the whole grid.
        relative: A `RelativePositions`; None: none are added.
        real: Tokens that are not padding, bool [B, h, w]; None: all.
    Returns:
        [B, h, w, C].
    """
    block = cast(Block, block)
    normed = block.norm1(tokens)
    if window:
        branch = _in_windows(block.attn, normed, window, relative, real)
    else:
        branch = _in_grid(block.attn, normed, relative, real)
    tokens = tokens + block.drop_path1(branch)
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))


def _in_windows(
    attention: nn.Module, tokens: Tensor, window: int, relative: nn.Module | None, real: Tensor | None
) -> Tensor:
    batch, height, width = tokens.shape[:3]
    windows, padded = window_partition(tokens, window)
    if real is None and padded != (height, width):
        real = tokens.new_ones(batch, height, width, dtype=torch.bool)
    if real is not None:
        # timm's padding is 0, so hidden.
        real = window_partition(real.unsqueeze(-1), window)[0].squeeze(-1)
    mixed = _in_grid(attention, windows, relative, real)
    return window_unpartition(mixed, window, (height, width), padded)


def _in_grid(attention: nn.Module, tokens: Tensor, relative: nn.Module | None, real: Tensor | None) -> Tensor:
    """Attention of every token of a grid [B, h, w, C] to all of it that is real."""
    attention = cast(Attention, attention)
    grid = (tokens.shape[1], tokens.shape[2])
    qkv = attention.qkv(tokens.flatten(1, 2)).unflatten(-1, (3, attention.num_heads, -1))
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, head_dim]
    gain = None if relative is None else relative(queries, grid)
    if real is not None:
        attended = real.flatten(1)
        # A window of padding alone attends to itself, since a softmax over nothing is not a number.
        attended = (attended | ~attended.any(dim=1, keepdim=True))[:, None, None]
        gain = attended if gain is None else gain.masked_fill(~attended, float("-inf"))
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=gain)
    return attention.proj(mixed.transpose(1, 2).flatten(2)).unflatten(1, grid)


def interpolated_positions(
    embedding: Tensor, *, own_grid: tuple[int, int], grid: tuple[int, int], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Position embeddings stretched over each image, the padding left out.

    Sin-cos embeddings are stretched like learnt ones, as the originals do: a computed one would have
    frequencies at places that the encoder has never seen.

    Args:
        embedding: [1, L, D], of `own_grid`.
        grid: Tokens of the padded images.
        sizes: Tokens of each image without its padding, (h, w).
    Returns:
        [B or 1, h, w, D], 0 in the padding.
    """
    made: dict[tuple[int, int], Tensor] = {}
    for size in sizes:
        if size not in made:
            fitted = positions_at(embedding, size, own_grid=own_grid, prefix=0, fixed=False)
            fitted = fitted.unflatten(1, size)[0]
            made[size] = F.pad(fitted, (0, 0, 0, grid[1] - size[1], 0, grid[0] - size[0]))
    if len(made) == 1:
        return made[sizes[0]].unsqueeze(0)
    return torch.stack([made[size] for size in sizes])
