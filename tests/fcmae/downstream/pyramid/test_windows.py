"""Attention over a grid: windows, hidden padding and relative positions, each against its definition."""

import pytest
import torch
from torch import Tensor, nn

from fcmae.downstream.pyramid.attention import RelativePositions, attend, interpolated_positions
from fcmae.models.transformer import transformer_blocks

DIM, HEADS = 8, 2


@pytest.fixture
def block() -> nn.Module:
    made = transformer_blocks(1, DIM, num_heads=HEADS)[0].double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


def relative_positions(grid: tuple[int, int]) -> RelativePositions:
    made = RelativePositions(grid, DIM // HEADS).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def directly(
    block: nn.Module, tokens: Tensor, *, window: int, relative: RelativePositions | None, real: Tensor
) -> Tensor:
    """The block one token at a time: softmax over the real tokens of its window."""
    qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, HEADS, DIM // HEADS))
    mixed = torch.zeros_like(tokens)
    for image, y, x in real.nonzero().tolist():
        keys = [
            (v, u)
            for _, v, u in real.nonzero().tolist()
            if real[image, v, u] and (not window or (v // window, u // window) == (y // window, x // window))
        ]
        keys = sorted(set(keys))
        for head in range(HEADS):
            query = qkv[image, y, x, 0, head]
            scores = []
            for v, u in keys:
                score = query @ qkv[image, v, u, 1, head] / (DIM // HEADS) ** 0.5
                if relative is not None:
                    reach = relative.rows.shape[0] // 2, relative.columns.shape[0] // 2
                    dy = max(-reach[0], min(reach[0], y - v))
                    dx = max(-reach[1], min(reach[1], x - u))
                    score = score + query @ relative.rows[dy + reach[0]]
                    score = score + query @ relative.columns[dx + reach[1]]
                scores.append(score)
            weights = torch.stack(scores).softmax(0)
            values = torch.stack([qkv[image, v, u, 2, head] for v, u in keys])
            mixed[image, y, x, head * (DIM // HEADS) : (head + 1) * (DIM // HEADS)] = weights @ values
    tokens = tokens + block.attn.proj(mixed)
    return tokens + block.mlp(block.norm2(tokens))


@pytest.mark.parametrize("window", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("with_relative", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_attention_by_its_definition(
    block: nn.Module, window: int, with_relative: bool, padded: bool
) -> None:
    tokens = torch.randn(2, 5, 6, DIM, dtype=torch.float64)
    real = torch.ones(2, 5, 6, dtype=torch.bool)
    if padded:
        real[0, 3:], real[0, :, 4:], real[1, :, 5:] = False, False, False
    # Tables for a grid of 2 x 4 where attention is global: distances beyond them occur.
    relative = relative_positions((window, window) if window else (2, 4)) if with_relative else None
    found = attend(block, tokens, window=window, relative=relative, real=real if padded else None)
    expected = directly(block, tokens, window=window, relative=relative, real=real)
    assert found.isfinite().all()
    assert torch.allclose(found[real], expected[real], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [0, 5, 6, 8])
@torch.no_grad()
def test_one_window_over_all_is_plain_attention(block: nn.Module, window: int) -> None:
    tokens = torch.randn(2, 5, 5, DIM, dtype=torch.float64)
    found = attend(block, tokens, window=window, relative=None, real=None)
    plain = block(tokens.flatten(1, 2)).unflatten(1, (5, 5))
    assert torch.allclose(found, plain, rtol=1e-12, atol=1e-12)


def test_positions_are_stretched_over_each_image() -> None:
    table = torch.randn(1, 12, DIM)
    found = interpolated_positions(table, own_grid=(3, 4), grid=(4, 6), sizes=[(3, 4), (2, 6), (3, 4)])
    assert found.shape == (3, 4, 6, DIM)
    assert torch.equal(found[0, :3, :4], table.unflatten(1, (3, 4))[0])
    assert torch.equal(found[0], found[2]) and not found[0, 3:].any() and not found[0, :, 4:].any()
    assert found[1, :2].all() and not found[1, 2:].any()
    same = interpolated_positions(table, own_grid=(3, 4), grid=(3, 4), sizes=[(3, 4), (3, 4)])
    assert same.shape == (1, 3, 4, DIM)
