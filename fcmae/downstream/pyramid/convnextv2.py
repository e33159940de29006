"""The pyramid of ConvNeXt V2: its four stages."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fcmae.downstream.pyramid.base import FeaturePyramid
from fcmae.errors import InputError
from fcmae.models import ConvNeXtV2Encoder
from sparse_ops import ActiveSites, features_of


class ConvNeXtV2Pyramid(FeaturePyramid):
    """The stages' features, each behind a LayerNorm of its own.

    Args:
        encoder: Of stem stride 4.
        description: See `FeaturePyramid`.
    Raises:
        InputError: another stem.
    Paper: Liu et al. 2022, ConvNeXt, and its code for Mask R-CNN and UPerNet (the norms).
    """

    def __init__(self, encoder: ConvNeXtV2Encoder, *, description: dict[str, Any]) -> None:
        if encoder.strides != (4, 8, 16, 32):
            raise InputError(
                f"weights: expected an encoder with strides 4 to 32, got {encoder.strides}. "
                "Pretrain with a stem_stride of 4."
            )
        super().__init__(encoder, encoder.dims, description=description)  # pyright: ignore[reportArgumentType]
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in encoder.dims)

    def maps(
        self, images: Tensor, sites: ActiveSites | None, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """See `FeaturePyramid`."""
        execution = "sparse" if sites is None else "masked_dense"
        stages = self.encoder(images, sites=sites, execution=execution)
        return [norm(features_of(stage)) for norm, stage in zip(self.norms, stages, strict=True)]
