"""Submanifold sparse convolution for masked images: only the visible sites are kept, as rows."""

from sparse_ops.dispatch import Backend, BackendUnavailableError
from sparse_ops.functional import Scope, downsample_conv2d, global_response_norm, grn_mlp, subm_conv2d
from sparse_ops.image import Image, MaskedImage, SparseImage, features_of, with_features
from sparse_ops.linear import linear
from sparse_ops.modules import DownsampleConv2d, GlobalResponseNorm, SubmConv2d
from sparse_ops.sites import ActiveSites

__all__ = [
    "ActiveSites",
    "Backend",
    "BackendUnavailableError",
    "DownsampleConv2d",
    "GlobalResponseNorm",
    "Image",
    "MaskedImage",
    "Scope",
    "SparseImage",
    "SubmConv2d",
    "downsample_conv2d",
    "features_of",
    "global_response_norm",
    "grn_mlp",
    "linear",
    "subm_conv2d",
    "with_features",
]
