"""MAE as He et al. 2021, section 3, define it: one image after the other, in plain tensor algebra.

Nothing of the library is used but the values of its state dict. Names are the official ones.
"""

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """[Gh * Gw, dim]: the x half, then the y half, each sines then cosines."""
    rows = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            angles = [[place / 10_000 ** (k / (dim / 4)) for k in range(dim // 4)] for place in (x, y)]
            rows.append([f(angle) for half in angles for f in (math.sin, math.cos) for angle in half])
    return torch.tensor(rows, dtype=torch.float64)


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def affine(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def block(x: Tensor, state: State, name: str, heads: int) -> Tensor:
    """A pre-norm transformer block over the tokens of one image, [T, dim]."""
    width = x.shape[1] // heads
    query, key, value = affine(layer_norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv").chunk(3, 1)
    attended = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = torch.exp(query[:, own] @ key[:, own].T / math.sqrt(width))
        attended.append(scores / scores.sum(1, keepdim=True) @ value[:, own])
    x = x + affine(torch.cat(attended, 1), state, f"{name}.attn.proj")
    hidden = affine(layer_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + affine(hidden, state, f"{name}.mlp.fc2")


def depth_of(state: State, name: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})


def mae(
    state: State,
    images: Tensor,
    visible: Tensor,
    *,
    patch: int,
    heads: int,
    decoder_heads: int,
    norm_pix_loss: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and the predicted patches [B, L, patch**2 * C].

    Args:
        state: Float64 values by MAE's official names.
        images: [B, C, H, W], float64.
        visible: bool [B, Gh, Gw].
        patch: Side of a patch in pixels.
        heads: Attention heads of the encoder.
        decoder_heads: Those of the decoder.
        norm_pix_loss: Normalise each target patch.
    """
    channels, grid = images.shape[1], (images.shape[2] // patch, images.shape[3] // patch)
    dim, decoder_dim = state["cls_token"].shape[2], state["mask_token"].shape[2]
    kernel = state["patch_embed.proj.weight"]
    positions, decoder_positions = sincos(grid, dim), sincos(grid, decoder_dim)
    errors, predictions = [], []
    for image, seen in zip(images, visible.flatten(1), strict=True):
        squares = [
            image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            for row in range(grid[0])
            for column in range(grid[1])
        ]
        kept = [number for number in range(len(squares)) if seen[number]]
        embedded = [
            (kernel * squares[number]).sum((1, 2, 3)) + state["patch_embed.proj.bias"] + positions[number]
            for number in kept
        ]
        tokens = torch.stack([state["cls_token"][0, 0], *embedded])
        for number in range(depth_of(state, "blocks")):
            tokens = block(tokens, state, f"blocks.{number}", heads)
        tokens = affine(layer_norm(tokens, state, "norm"), state, "decoder_embed")

        of_patch = dict(zip(kept, tokens[1:], strict=True))
        whole = [
            of_patch.get(number, state["mask_token"][0, 0]) + decoder_positions[number]
            for number in range(len(squares))
        ]
        tokens = torch.stack([tokens[0], *whole])
        for number in range(depth_of(state, "decoder_blocks")):
            tokens = block(tokens, state, f"decoder_blocks.{number}", decoder_heads)
        predicted = affine(layer_norm(tokens, state, "decoder_norm"), state, "decoder_pred")[1:]
        predictions.append(predicted)

        for number, square in enumerate(squares):
            if number in of_patch:
                continue
            target = square.permute(1, 2, 0).flatten()  # pixels ordered (y, x, channel)
            if norm_pix_loss:
                variance = (target - target.mean()).square().sum() / (patch * patch * channels - 1)
                target = (target - target.mean()) / (variance + 1e-6).sqrt()
            errors.append((predicted[number] - target).square().mean())
    return torch.stack(errors).mean(), torch.stack(predictions)
