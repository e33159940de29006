"""Detection and segmentation on the pretrained encoders."""

from fcmae.downstream.pyramid import FeaturePyramid, create_pyramid

__all__ = ["FeaturePyramid", "create_pyramid"]
