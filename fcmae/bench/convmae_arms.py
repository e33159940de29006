"""ConvMAE's arms: whole steps, and the convolution stages alone.

`direct` is the original's arrangement written by hand with `F.conv2d` in channels-last, to show that the
masked-dense arm is not slowed down by our abstractions: dense convolution stages times a mask, then the
transformer on the visible tokens, as in every arm.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.config import Execution
from fcmae.masking import patchify, visible_from_ids
from fcmae.methods import ConvMAE, create_method
from fcmae.methods.losses import reconstruction_loss
from fcmae.models.convmae import ConvMAEBlock, ConvPatchEmbed
from fcmae.models.position import sincos_positions
from sparse_ops import ActiveSites, SparseImage, features_of

STAGES = "_stages"
"""Ends the name of an arm that runs the two convolution stages alone."""
CONVMAE_ARMS = ("sparse", "masked_dense", "leaky_dense", "direct")
CONVMAE_STAGE_ARMS = tuple(arm + STAGES for arm in ("sparse", "masked_dense", "direct"))


class DirectConvMAE(nn.Module):
    """ConvMAE's step as the original arranges it, in plain PyTorch; parameters are those of `method`."""

    def __init__(self, method: ConvMAE) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, visible_ids: Tensor) -> Tensor:
        """The loss of [B, C, H, W] images under the mask of visible patches [B, K]."""
        method, encoder = self.method, self.method.encoder
        visible = visible_from_ids(visible_ids, method.grid_of(images))
        first, second = convolve(method, images, visible)
        x = _embed(encoder.patch_embed3, second).flatten(2).transpose(1, 2)
        positions = sincos_positions(method.grid_of(images), x.shape[2], device=x.device, dtype=x.dtype)
        x = encoder.blocks3(_take(encoder.patch_embed4(x) + positions, visible_ids))
        for x_stage, conv in ((first, method.stage1_output_decode), (second, method.stage2_output_decode)):
            fused = F.conv2d(x_stage, conv.weight, conv.bias, conv.stride).flatten(2).transpose(1, 2)
            x = x + _take(fused, visible_ids)
        sites = ActiveSites.from_visible_ids(visible_ids, grid=method.grid_of(images), tile=1)
        pred = method.decoder(SparseImage(encoder.norm(x).flatten(0, 1), sites)).flatten(1, 2)
        return reconstruction_loss(
            pred, patchify(images, method.patch_size), ~visible.flatten(1), norm_pix_loss=method.norm_pix_loss
        )


class ConvStages(nn.Module):
    """The two convolution stages alone, and a loss of what the transformer would see of them."""

    def __init__(self, method: ConvMAE, arm: str) -> None:
        super().__init__()
        # Of the whole method, so that the parameters are the same; what is not run has no gradient.
        self.method, self.arm = method, arm

    def forward(self, images: Tensor, visible_ids: Tensor) -> Tensor:
        """The mean square of the second stage's visible features."""
        method = self.method
        grid = method.grid_of(images)
        tile = method.patch_size // method.encoder.strides[0]
        sites = ActiveSites.from_visible_ids(visible_ids, grid=grid, tile=tile)
        if self.arm == "direct":
            second = convolve(method, images, visible_from_ids(visible_ids, grid))[1].permute(0, 2, 3, 1)
        else:
            second = method.encoder.convolve(images, sites, cast(Execution, self.arm))[1]
        if not isinstance(second, SparseImage):
            second = SparseImage.from_dense(features_of(second), sites.downsample(2))
        return second.features.float().square().mean()


def convolve(method: ConvMAE, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution stages as the original has them, [B, C, h, w] each."""
    encoder = method.encoder
    x = _embed(encoder.patch_embed1, images.contiguous(memory_format=torch.channels_last))
    first = x = _blocks(encoder.blocks1, x, visible)
    return first, _blocks(encoder.blocks2, _embed(encoder.patch_embed2, x), visible)


def _embed(embed: ConvPatchEmbed, x: Tensor) -> Tensor:
    x = F.conv2d(x, embed.proj.weight, embed.proj.bias, embed.proj.stride)
    return F.gelu(_norm(embed.norm, x))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _blocks(blocks: nn.Module, x: Tensor, visible: Tensor) -> Tensor:
    scale = x.shape[2] // visible.shape[1]
    mask = visible.repeat_interleave(scale, 1).repeat_interleave(scale, 2)[:, None].to(x.dtype)
    for block in blocks.children():
        assert isinstance(block, ConvMAEBlock)
        y = mask * F.conv2d(_norm(block.norm1, x), block.conv1.weight, block.conv1.bias)
        attn = block.attn
        y = F.conv2d(y, attn.weight, attn.bias, padding=attn.kernel_size[0] // 2, groups=attn.groups)
        x = x + F.conv2d(y, block.conv2.weight, block.conv2.bias)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        y = F.gelu(F.conv2d(_norm(block.norm2, x), fc1.weight, fc1.bias))
        x = x + F.conv2d(y, fc2.weight, fc2.bias)
    return x


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """The tokens [B, L, C] at the ids [B, K]."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[2]))


def build_convmae(
    *, arm: str, backbone: str, image_size: int, mask_ratio: float, backend: str, device: torch.device
) -> tuple[nn.Module, int]:
    """The network of a ConvMAE arm, and the side of a patch."""
    kind = arm.removesuffix(STAGES)
    method = create_method(
        "convmae",
        backbone=backbone,
        image_size=image_size,
        mask_ratio=mask_ratio,
        execution="masked_dense" if kind == "direct" else kind,
        backend=backend,
    ).to(device)
    assert isinstance(method, ConvMAE)
    if arm.endswith(STAGES):
        return ConvStages(method, kind), method.patch_size
    return DirectConvMAE(method) if kind == "direct" else method, method.patch_size
