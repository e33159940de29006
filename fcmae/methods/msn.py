"""MSN: masked anchor views choose the prototypes that an averaged network chooses for the whole view."""

import copy
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcmae.config import DataConfig
from fcmae.data import Views, ViewTransform, multi_crop
from fcmae.errors import InputError
from fcmae.masking import WHOLE, BatchPart, count_visible, patch_grid, random_visible_ids
from fcmae.methods.method import Method
from fcmae.methods.msn_head import ProjectionHead
from fcmae.methods.msn_loss import msn_loss
from fcmae.methods.msn_reduce import count_processes, reduce_max
from fcmae.methods.output import MethodOutput
from fcmae.models import ConvMAEEncoder, Encoder, ViTEncoder, require_name
from sparse_ops import ActiveSites

MASK_SHARINGS = ("sample", "original")


class MSN(Method):
    """Masked Siamese Network of any encoder.

    The target network (`target_encoder`, `target_projection`) is the moving average of the trained one. As
    in the paper, it is the one to evaluate; `encoder` is kept beside it. Only parameters are averaged: a
    BatchNorm's running statistics are each network's own, and in training neither uses them. The target's
    encoder never drops paths.

    Args:
        encoder: Any; it sees the visible patches of the anchors, and whole targets and focal views.
        image_size: (H, W) of target and anchors in pixels.
        patch_size: Side of a masking cell in pixels, a multiple of the encoder's largest stride; None: that
            stride.
        mask_ratio: Share of an anchor's cells that is hidden; focal views are never masked.
        mask_sharing: "sample": each anchor has its own mask. "original": one mask for the batch.
        anchors: Masked views of each image.
        focal_views: Small views of each image.
        focal_size: Their side in pixels.
        focal_scale: Their area as a share of the image.
        color_jitter: Strength of the change of colours; needs 3 channels, 0 turns it off.
        blur: Probability of a Gaussian blur.
        share_view: The anchors are masked copies of the target's view; an ablation that collapses.
        prototypes: How many.
        hidden_dim: Width of the projection head.
        output_dim: Width of the prototypes.
        temperature: Of the softmax over prototypes.
        sharpening: T; the targets' probabilities are raised to 1 / T.
        sinkhorn_iterations: Of the targets; 0: none.
        me_max_weight: Weight of the mean prediction's entropy, which is made large.
        entropy_weight: Weight of each prediction's entropy, which is made small.
        momentum: Of the average at the first step; it rises linearly to 1.
    Raises:
        InputError: sides or patch size do not fit, or the mask would hide nothing or everything.
    Paper: Assran et al. 2022, Masked Siamese Networks, section 3 and appendix A.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        image_size: tuple[int, int],
        patch_size: int | None = None,
        mask_ratio: float = 0.15,
        mask_sharing: Literal["sample", "original"] = "sample",
        anchors: int = 1,
        focal_views: int = 10,
        focal_size: int = 96,
        focal_scale: tuple[float, float] = (0.05, 0.3),
        color_jitter: float = 0.5,
        blur: float = 0.5,
        share_view: bool = False,
        prototypes: int = 1024,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        sinkhorn_iterations: int = 3,
        me_max_weight: float = 1.0,
        entropy_weight: float = 0.0,
        momentum: float = 0.996,
    ) -> None:
        super().__init__(encoder)
        require_name("mask_sharing", "who shares a mask", mask_sharing, MASK_SHARINGS)
        self.patch_size = encoder.max_stride if patch_size is None else patch_size
        if self.patch_size < 1 or self.patch_size % encoder.max_stride:
            raise InputError(
                f"patch_size: expected a multiple of the encoder's largest stride {encoder.max_stride}, got "
                f"{patch_size}."
            )
        grid = patch_grid(image_size, self.patch_size)
        count_visible(grid[0] * grid[1], mask_ratio)
        if focal_views and focal_size % encoder.max_stride:
            raise InputError(
                f"focal_size: expected a multiple of the encoder's largest stride {encoder.max_stride}, got "
                f"{focal_size}."
            )
        self.image_size, self.mask_ratio, self.mask_sharing = image_size, mask_ratio, mask_sharing
        self.anchors, self.momentum = anchors, momentum
        self.view_options = {
            "anchors": anchors,
            "focal_views": focal_views,
            "focal_size": focal_size,
            "focal_scale": focal_scale,
            "color_jitter": color_jitter,
            "blur": blur,
            "share_view": share_view,
        }
        self.loss_options = {
            "temperature": temperature,
            "sharpening": sharpening,
            "sinkhorn_iterations": sinkhorn_iterations,
            "me_max_weight": me_max_weight,
            "entropy_weight": entropy_weight,
        }
        normed = isinstance(encoder, ConvMAEEncoder | ViTEncoder)
        self.projection = ProjectionHead(encoder.dims[-1], hidden_dim, output_dim, norm=not normed)
        self.prototypes = nn.Parameter(torch.empty(prototypes, output_dim))
        nn.init.uniform_(self.prototypes, -(output_dim**-0.5), output_dim**-0.5)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As every module's, but the target's encoder stays in evaluation: it drops no paths."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def transform(self, data: DataConfig) -> ViewTransform:
        """From an image of any size to its target, anchors and focal views."""
        return multi_crop(data, **self.view_options)

    def draw_visible_ids(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Views, generator: torch.Generator | None = None, *, part: BatchPart = WHOLE
    ) -> Tensor:
        """Masks of the anchors, int64 [A * B, K], ascending; the first B are those of each image's first.

        With the mask sharing of the original, the one mask is that of the whole global batch.
        """
        count, anchors = images.anchors.shape[:2]
        draw = partial(
            random_visible_ids,
            grid=self.grid_of(images),
            mask_ratio=self.mask_ratio,
            generator=generator,
            device=images.anchors.device,
        )
        if self.mask_sharing == "original":
            return draw(1).expand(anchors * count, -1).contiguous()
        return torch.cat([draw(count, part=part) for _ in range(anchors)])

    def grid_of(self, images: Views) -> tuple[int, int]:
        """Patches of each anchor, (Gh, Gw)."""
        return patch_grid((images.anchors.shape[-2], images.anchors.shape[-1]), self.patch_size)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Views,
        generator: torch.Generator | None = None,
        *,
        visible_ids: Tensor | None = None,
    ) -> MethodOutput:
        """Compare the views' assignments to prototypes.

        All anchors run as one batch, so do all focal views; the projection head sees both together.

        Args:
            images: target [B, C, H, W], anchors [B, A, C, H, W], focal [B, F, C, h, w] or empty.
            generator: Source of the masks' randomness, where none are given.
            visible_ids: The anchors' masks, see `draw_visible_ids`.
        Returns:
            Loss and, in `logs`: cross_entropy, mean_entropy (of all processes' mean prediction, at most
            log K), target_entropy (mean of each target's), prototypes_in_use (that a target of any process
            likes best), prototype_share (of as many as the batch could use) and embedding_std (root mean
            square distance of this process' target vectors, at length 1, from their mean: 0 where the encoder
            tells no two images apart, 1 where they point everywhere).
        """
        if self.training and len(images.target) * count_processes() < 2:
            raise InputError(
                f"train.batch_size: expected at least 2 images, which MSN compares, got {len(images.target)}."
            )
        if visible_ids is None:
            visible_ids = self.draw_visible_ids(images, generator)
        sites = ActiveSites.from_visible_ids(
            visible_ids, grid=self.grid_of(images), tile=self.patch_size // self.encoder.strides[0]
        )
        embeddings = [self.encoder.embed(_by_view(images.anchors), sites=sites)]
        if images.focal.numel():
            embeddings.append(self.encoder.embed(_by_view(images.focal)))
        predicted = self.projection(torch.cat(embeddings))
        with torch.no_grad():
            target_embeddings = self.target_encoder.embed(images.target)
            targets = self.target_projection(target_embeddings)
        terms = msn_loss(predicted, targets, self.prototypes, **self.loss_options)
        with torch.no_grad():
            used = torch.zeros(len(self.prototypes), device=targets.device)
            used = reduce_max(used.scatter(0, terms.chosen, 1.0))
            vectors = F.normalize(target_embeddings.float(), dim=1)
            spread = vectors.var(dim=0, correction=0).sum().sqrt()
        return MethodOutput(
            loss=terms.loss,
            logs={
                "cross_entropy": terms.cross_entropy,
                "mean_entropy": terms.mean_entropy,
                "target_entropy": terms.target_entropy,
                "prototypes_in_use": used.sum(),
                "prototype_share": used.sum() / min(len(used), len(targets) * count_processes()),
                "embedding_std": spread,
            },
        )

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Average the target network: `target += (1 - m) * (online - target)`.

        m rises from `momentum` to 1 along the schedule.

        Args:
            progress: Share of the schedule that is done, in (0, 1].
        """
        momentum = self.momentum + (1 - self.momentum) * progress
        for online, target in (
            (self.encoder, self.target_encoder),
            (self.projection, self.target_projection),
        ):
            for new, average in zip(online.parameters(), target.parameters(), strict=True):
                average.lerp_(new, 1 - momentum)


def _by_view(views: Tensor) -> Tensor:
    """[B, V, C, H, W] -> [V * B, C, H, W], the first view of every image first."""
    return views.transpose(0, 1).flatten(0, 1)
