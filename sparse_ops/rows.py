"""What backends that keep rows share, since it needs no neighbours: views, reductions and a GEMM."""

import torch
from torch import Tensor

from sparse_ops.linear import linear
from sparse_ops.sites import ActiveSites, tile_order


def downsample_conv2d(features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites) -> Tensor:
    """Kernel = stride: the children of a coarser site side by side, and one GEMM.

    Siblings are consecutive rows for patch-aligned sites, so no row moves; otherwise they are gathered.
    """
    out_channels, channels, factor, _ = weight.shape
    kernel = weight.permute(0, 2, 3, 1).reshape(out_channels, factor * factor, channels)
    if sites.is_view_of_children(factor):
        kernel = kernel.index_select(1, tile_order(factor, weight.device))
    else:
        padded = torch.cat([features, features.new_zeros(1, channels)])
        features = padded[sites.child_rows(factor).long()]
    children = features.reshape(-1, factor * factor * channels)
    return linear(children, kernel.reshape(out_channels, -1), bias)


def global_response_norm(
    features: Tensor, gamma: Tensor, beta: Tensor, sites: ActiveSites, eps: float, scope: str
) -> Tensor:
    """Norms as a reduction over each image's rows, in float32 at least; segments where counts differ."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    channels = wide.shape[1]
    ragged = scope == "image" and sites.rows_per_image is None
    groups = 1 if scope == "batch" else sites.batch_size
    squares = wide * wide
    if ragged:
        squares = squares.new_zeros(groups, channels).index_add(0, sites.image_of_row, squares)
    else:
        squares = squares.view(groups, wide.shape[0] // groups, channels).sum(1)
    # The square root has no slope at 0; an absent channel has norm 0 and, as in vector_norm, gradient 0.
    norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    scale = gamma * (norms / (norms.mean(dim=1, keepdim=True) + eps)) + 1
    if ragged:
        out = wide * scale.index_select(0, sites.image_of_row)
    else:
        out = (wide.view(groups, wide.shape[0] // groups, channels) * scale.unsqueeze(1)).flatten(0, 1)
    return (out + beta).to(features.dtype)
