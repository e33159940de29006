"""ConvMAE's pretraining forward as the original computes it: dense maps times a mask.

Maps are [B, C, H, W]; the mask, 1 at hidden patches, multiplies inverted what the depthwise convolution reads
and nothing else. Weights have the authors' names.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Original:
    """The forward pass over a state dict.

    Args:
        state: Weights by the authors' names.
        heads: Attention heads of the encoder and of the decoder.
    """

    def __init__(self, state: dict[str, Tensor], *, heads: tuple[int, int]) -> None:
        self.state = state
        self.heads = heads

    def loss_and_pred(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and predicted patches [B, L, 256 C] for the mask [B, Gh, Gw], 1 = hidden, with norm_pix."""
        batch_size = images.shape[0]
        keep = hidden.flatten(1).argsort(dim=1, stable=True)[:, : int((hidden[0] == 0).sum())]
        tokens = self.encode(images, hidden, keep)
        x = tokens @ self.state["decoder_embed.weight"].T + self.state["decoder_embed.bias"]
        painted = self.state["mask_token"].expand(batch_size, hidden[0].numel(), -1).clone()
        for image in range(batch_size):
            painted[image, keep[image]] = x[image]
        x = painted + self.state["decoder_pos_embed"]
        x = self.transformer("decoder_blocks", x, self.heads[1])
        x = self.norm("decoder_norm", x, 1e-6)
        pred = x @ self.state["decoder_pred.weight"].T + self.state["decoder_pred.bias"]

        total, count = torch.zeros((), dtype=images.dtype), 0
        for image in range(batch_size):
            for patch, is_hidden in enumerate(hidden[image].flatten().tolist()):
                y, left = divmod(patch, hidden.shape[2])
                square = images[image, :, 16 * y : 16 * y + 16, 16 * left : 16 * left + 16]
                target = square.permute(1, 2, 0).flatten()
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                if is_hidden:
                    total = total + ((pred[image, patch] - target) ** 2).mean()
                    count += 1
        return total / count, pred

    def encode(self, images: Tensor, hidden: Tensor, keep: Tensor) -> Tensor:
        """The visible tokens behind the last norm, [B, K, C]."""
        state = self.state
        x = self.patch_embed(1, images, 4)
        x = self.conv_blocks("blocks1", x, 1 - F.interpolate(hidden[:, None], scale_factor=4))
        fused = [self.conv("stage1_output_decode", x, stride=4)]
        x = self.patch_embed(2, x, 2)
        x = self.conv_blocks("blocks2", x, 1 - F.interpolate(hidden[:, None], scale_factor=2))
        fused.append(self.conv("stage2_output_decode", x, stride=2))
        x = self.patch_embed(3, x, 2).flatten(2).transpose(1, 2)
        x = x @ state["patch_embed4.weight"].T + state["patch_embed4.bias"] + state["pos_embed"]
        x = self.transformer("blocks3", _take(x, keep), self.heads[0])
        for scale in fused:
            x = x + _take(scale.flatten(2).transpose(1, 2), keep)
        return self.norm("norm", x, 1e-6)

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def channel_norm(self, name: str, x: Tensor) -> Tensor:
        return self.norm(name, x.permute(0, 2, 3, 1), 1e-5).permute(0, 3, 1, 2)

    def patch_embed(self, stage: int, x: Tensor, stride: int) -> Tensor:
        x = self.conv(f"patch_embed{stage}.proj", x, stride=stride)
        return F.gelu(self.channel_norm(f"patch_embed{stage}.norm", x))

    def conv_blocks(self, stage: str, x: Tensor, seen: Tensor) -> Tensor:
        for name in self.blocks(stage):
            branch = seen * self.conv(f"{name}.conv1", self.channel_norm(f"{name}.norm1", x))
            kernel = self.state[f"{name}.attn.weight"].shape[-1]
            branch = self.conv(f"{name}.attn", branch, padding=kernel // 2, groups=x.shape[1])
            x = x + self.conv(f"{name}.conv2", branch)
            branch = F.gelu(self.conv(f"{name}.mlp.fc1", self.channel_norm(f"{name}.norm2", x)))
            x = x + self.conv(f"{name}.mlp.fc2", branch)
        return x

    def transformer(self, stage: str, x: Tensor, heads: int) -> Tensor:
        for name in self.blocks(stage):
            x = x + self.attention(name, self.norm(f"{name}.norm1", x, 1e-6), heads)
            hidden = self.norm(f"{name}.norm2", x, 1e-6) @ self.state[f"{name}.mlp.fc1.weight"].T
            hidden = F.gelu(hidden + self.state[f"{name}.mlp.fc1.bias"])
            x = x + hidden @ self.state[f"{name}.mlp.fc2.weight"].T + self.state[f"{name}.mlp.fc2.bias"]
        return x

    def attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        batch_size, tokens, width = x.shape
        qkv = x @ self.state[f"{name}.attn.qkv.weight"].T + self.state[f"{name}.attn.qkv.bias"]
        q, k, v = (part.view(batch_size, tokens, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        weights = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).softmax(dim=-1)
        x = (weights @ v).transpose(1, 2).reshape(batch_size, tokens, width)
        return x @ self.state[f"{name}.attn.proj.weight"].T + self.state[f"{name}.attn.proj.bias"]

    def blocks(self, stage: str) -> list[str]:
        count = 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith(f"{stage}."))
        return [f"{stage}.{block}" for block in range(count)]


def positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """The authors' fixed embedding, [1, L, dim]: a quarter each of sines and cosines of x, then of y."""
    rows = []
    for patch in range(grid[0] * grid[1]):
        y, x = divmod(patch, grid[1])
        angles = [[place / 10_000 ** (4 * k / dim) for k in range(dim // 4)] for place in (x, y)]
        rows.append([wave(angle) for part in angles for wave in (math.sin, math.cos) for angle in part])
    return torch.tensor([rows], dtype=torch.float64)


def _take(tokens: Tensor, keep: Tensor) -> Tensor:
    """The tokens [B, L, C] at the indices [B, K]."""
    return torch.stack([image[ids] for image, ids in zip(tokens, keep, strict=True)])
