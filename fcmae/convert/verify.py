"""Proof by running: the sparse encoder and the dense timm model compute the same features."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.convert.architecture import Architecture
from fcmae.convert.load import load_weights
from fcmae.errors import InputError
from fcmae.masking import random_visible_ids, visible_from_ids
from fcmae.models import ConvNeXtV2Encoder
from sparse_ops import SparseImage, features_of

BOUND = 1e-4
"""Largest difference of a feature that is allowed, as a share of the root mean square of its stage. Summing
float32 in another order gives some 1e-6."""
_MASK_RATIO = 0.6
_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class StageDifference:
    """How far two executions of one stage are apart."""

    comparison: str
    stage: int
    absolute: float
    """Largest absolute difference of a feature."""
    scale: float
    """Root mean square of the stage's features."""

    @property
    def relative(self) -> float:
        """The difference as a share of the scale; 0 where both are 0."""
        return self.absolute / self.scale if self.scale else self.absolute

    def line(self) -> str:
        """One row of the printed table."""
        return (
            f"verify   {self.comparison}, stage {self.stage}: largest difference {self.absolute:.1e}, "
            f"{self.relative:.1e} of the root mean square"
        )


@torch.no_grad()
def compare_outputs(
    ours: Mapping[str, Tensor], converted: Mapping[str, Tensor], architecture: Architecture, *, seed: int = 0
) -> list[StageDifference]:
    """Run the source and the target on the same random images and compare them stage by stage.

    All patches visible: our sparse encoder against the timm model. Mask ratio 0.6: our sparse execution
    against our masked-dense one, at the visible sites. Float32, evaluation mode, two images, GRN per
    image.

    Args:
        ours: The source's weights, in any format that load_weights reads.
        converted: timm's state dict made from them; its head is not used.
        architecture: What both are weights of.
        seed: Of the images and of the mask.
    Returns:
        One entry a comparison and stage. Pass it to check_differences to make a difference an error.
    """
    encoder = architecture.create_encoder().eval()
    load_weights(encoder, ours)
    dense = architecture.create_timm(num_classes=0).eval()
    load_weights(dense, converted, source="timm")

    generator = torch.Generator().manual_seed(seed)
    # Every tap of a kernel must reach some site of the last stage; not square, so that swapped axes show.
    rows = max(4, architecture.kernel_size // 2 + 1)
    grid = (rows, rows + 1)
    height, width = (encoder.max_stride * patches for patches in grid)
    images = torch.randn(_BATCH, architecture.in_chans, height, width, generator=generator)
    everything = torch.ones(_BATCH, *grid, dtype=torch.bool)
    ids = random_visible_ids(_BATCH, grid, mask_ratio=_MASK_RATIO, generator=generator)
    visible = visible_from_ids(ids, grid)

    full = [stage.densify() for stage in _sparse_stages(encoder, images, everything)]
    sparse = _sparse_stages(encoder, images, visible)
    masked = encoder(images, visible=visible, execution="masked_dense")
    masked_rows = [
        SparseImage.from_dense(features_of(stage), visible_rows.sites)
        for stage, visible_rows in zip(masked, sparse, strict=True)
    ]
    return [
        *_differences("all visible, sparse against timm", full, _timm_stages(dense, images)),
        *_differences(
            "mask ratio 0.6, sparse against masked dense",
            [stage.features for stage in sparse],
            [stage.features for stage in masked_rows],
        ),
    ]


def check_differences(differences: list[StageDifference], *, bound: float = BOUND) -> None:
    """Raise InputError, naming the worst stage, unless every difference is at most `bound` of its scale."""
    failed = [found for found in differences if not found.relative <= bound]  # NaN fails too
    if failed:
        worst = max(failed, key=lambda found: found.relative)
        raise InputError(
            f"verify: expected differences of at most {bound:.0e} of the root mean square, "
            f"got {worst.relative:.1e} ({worst.comparison}, stage {worst.stage}). "
            "The conversion is wrong or the weights overflow: nothing was written."
        )


def _sparse_stages(encoder: ConvNeXtV2Encoder, images: Tensor, visible: Tensor) -> list[SparseImage]:
    stages = encoder(images, visible=visible)
    # Dense features here would compare the dense code with itself.
    assert all(isinstance(stage, SparseImage) for stage in stages)
    return stages


def _timm_stages(model: ConvNeXt, images: Tensor) -> list[Tensor]:
    """Stage features [B, H, W, C] of a timm ConvNeXt."""
    features = model.stem(images)
    stages = []
    for stage in model.stages:
        features = stage(features)
        stages.append(features.permute(0, 2, 3, 1))
    return stages


def _differences(comparison: str, ours: list[Tensor], theirs: list[Tensor]) -> list[StageDifference]:
    return [
        StageDifference(
            comparison=comparison,
            stage=index,
            absolute=(a - b).abs().max().item(),
            scale=b.square().mean().sqrt().item(),
        )
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
