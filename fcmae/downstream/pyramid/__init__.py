"""Feature maps at strides 4 to 32 from every encoder."""

from fcmae.downstream.pyramid.base import STRIDES, FeaturePyramid
from fcmae.downstream.pyramid.create import create_pyramid
from fcmae.downstream.pyramid.transformer import PyramidPositions

__all__ = ["STRIDES", "FeaturePyramid", "PyramidPositions", "create_pyramid"]
