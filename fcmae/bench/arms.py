"""The networks that a step is timed on: ours in each execution, and what it is held against.

`direct` is the masked-dense network written by hand with `F.conv2d` in channels-last, to show that the
masked-dense arm is not slowed down by our abstractions. `mae` is MAE with ViT-B/16, timm's blocks.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.bench.convmae_arms import build_convmae
from fcmae.masking import patch_grid, patchify, random_visible_ids, visible_from_ids
from fcmae.methods import FCMAE, MAE, create_method
from fcmae.methods.losses import reconstruction_loss
from fcmae.models import ConvNeXtDecoder
from fcmae.models.blocks import ConvNeXtV2Block, Downsample
from sparse_ops import ActiveSites, GlobalResponseNorm

ARMS = ("sparse", "masked_dense", "leaky_dense", "direct", "mae")


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One arm of the benchmark, as it is sent to its process."""

    arm: str
    backbone: str
    batch_size: int
    image_size: int
    mask_ratio: float
    precision: str
    backend: str
    device: str
    compile: bool
    threads: int
    method: str = "fcmae"

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


class DirectMaskedDense(nn.Module):
    """FCMAE's masked-dense step in plain PyTorch; parameters are those of `method`."""

    def __init__(self, method: FCMAE) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, visible_ids: Tensor) -> Tensor:
        """The loss of [B, C, H, W] images under the mask of visible patches [B, K]."""
        method = self.method
        encoder, decoder = method.encoder, method.decoder
        assert isinstance(decoder, ConvNeXtDecoder)
        visible = visible_from_ids(visible_ids, method.grid_of(images))
        stem, channels_last = encoder.stem, images.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(channels_last, stem.conv.weight, stem.conv.bias, stem.stride)
        x = stem.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        mask = _upsample(visible, x)
        for module in encoder.stages.modules():
            if isinstance(module, Downsample):
                x = module.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                x = F.conv2d(x, module.conv.weight, module.conv.bias, 2)
                mask = _upsample(visible, x)
            elif isinstance(module, ConvNeXtV2Block):
                x = _direct_block(module, x, mask)
        coarse = visible[:, None].to(x.dtype)
        x = F.conv2d(x, decoder.proj.weight[:, :, None, None], decoder.proj.bias)
        x = x * coarse + decoder.mask_token[:, None, None] * (1 - coarse)
        for module in decoder.modules():
            if isinstance(module, ConvNeXtV2Block):
                x = _direct_block(module, x, None)
        x = F.conv2d(x, decoder.pred.weight[:, :, None, None], decoder.pred.bias)
        pred = x.permute(0, 2, 3, 1).flatten(1, 2)
        return reconstruction_loss(
            pred, patchify(images, method.patch_size), ~visible.flatten(1), norm_pix_loss=method.norm_pix_loss
        )


def _upsample(visible: Tensor, x: Tensor) -> Tensor:
    """The mask of visible patches at the sites of x [B, C, H, W], [B, 1, H, W]."""
    scale = x.shape[2] // visible.shape[1]
    return visible.repeat_interleave(scale, 1).repeat_interleave(scale, 2)[:, None].to(x.dtype)


def _direct_block(block: ConvNeXtV2Block, x: Tensor, mask: Tensor | None) -> Tensor:
    conv, mlp = block.conv_dw, block.mlp
    counted = x if mask is None else x * mask
    y = F.conv2d(counted, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2, groups=conv.groups)
    y = block.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, mlp.fc1.weight[:, :, None, None], mlp.fc1.bias)).permute(0, 2, 3, 1)
    counted = y if mask is None else y * mask.permute(0, 2, 3, 1)
    norms = torch.linalg.vector_norm(counted, dim=(1, 2), keepdim=True)
    scale = mlp.grn.weight * (norms / (norms.mean(-1, keepdim=True) + mlp.grn.eps)) + 1
    y = torch.addcmul(mlp.grn.bias, y, scale)
    return x + F.conv2d(y.permute(0, 3, 1, 2), mlp.fc2.weight[:, :, None, None], mlp.fc2.bias)


class AllVisible(nn.Module):
    """FCMAE's step at mask ratio 0, which FCMAE refuses for want of a loss: here that of all patches."""

    def __init__(self, method: FCMAE) -> None:
        super().__init__()
        self.method = method
        self.patch_size = method.patch_size

    def forward(self, images: Tensor, visible_ids: Tensor) -> Tensor:
        """The loss of [B, C, H, W] images; `visible_ids` [B, L] names every patch."""
        method = self.method
        tile = method.patch_size // method.encoder.strides[0]
        sites = ActiveSites.from_visible_ids(visible_ids, grid=method.grid_of(images), tile=tile)
        pred, patches = method.predict(images, sites), patchify(images, method.patch_size)
        counted = torch.ones(pred.shape[:2], dtype=torch.bool, device=pred.device)
        return reconstruction_loss(pred, patches, counted, norm_pix_loss=method.norm_pix_loss)


def build_network(spec: StepSpec) -> tuple[nn.Module, Tensor, int]:
    """The network of an arm, its images, and the side of a patch; the same in every process."""
    torch.manual_seed(0)
    device = torch.device(spec.device)
    images = torch.randn(spec.batch_size, 3, spec.image_size, spec.image_size, device=device)
    if spec.arm == "mae":
        mae = create_method(
            "mae", backbone="vit_base_patch16", image_size=spec.image_size, mask_ratio=spec.mask_ratio
        ).to(device)
        assert isinstance(mae, MAE)
        return mae, images, mae.patch_size
    if spec.method == "convmae":
        network, patch_size = build_convmae(
            arm=spec.arm,
            backbone=spec.backbone,
            image_size=spec.image_size,
            mask_ratio=spec.mask_ratio,
            backend=spec.backend,
            device=device,
        )
        return network, images, patch_size
    method = create_method(
        "fcmae",
        backbone=spec.backbone,
        image_size=spec.image_size,
        mask_ratio=spec.mask_ratio or 0.5,  # at 0 the ids name every patch
        execution="masked_dense" if spec.arm == "direct" else spec.arm,
        backend=spec.backend,
    ).to(device)
    assert isinstance(method, FCMAE)
    for module in method.modules():  # zero at the start, GRN would hide a difference between the arms
        if isinstance(module, GlobalResponseNorm):
            nn.init.normal_(module.weight, std=0.1)
    if spec.arm == "direct":
        return DirectMaskedDense(method), images, method.patch_size
    return method if spec.mask_ratio else AllVisible(method), images, method.patch_size


def build_step(spec: StepSpec) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The network of an arm, and a function that runs one forward and backward pass and returns the loss."""
    network, images, patch_size = build_network(spec)
    device = images.device
    run = torch.compile(network, fullgraph=True) if spec.compile else network
    grid = patch_grid((spec.image_size, spec.image_size), patch_size)
    generator = torch.Generator()

    def step() -> Tensor:
        # The same masks in every step and every arm.
        generator.manual_seed(0)
        ids = random_visible_ids(
            spec.batch_size, grid, mask_ratio=spec.mask_ratio, generator=generator, device=device
        )
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            out = run(images, visible_ids=ids)
        loss = out if isinstance(out, Tensor) else out.loss
        loss.backward()
        return loss.detach()

    return network, step
