"""The definition of every op: masked dense PyTorch, read at the active sites.

Every other backend must reproduce these results, gradients included. Nothing here is fast.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.dispatch import Call
from sparse_ops.image import SparseImage
from sparse_ops.sites import ActiveSites


def reasons(call: Call) -> list[str]:
    """Why this backend cannot run the call: never."""
    return []


def _dense(features: Tensor, sites: ActiveSites) -> Tensor:
    """[N, C] -> [B, C, H, W] with zeros at the inactive sites."""
    return SparseImage(features, sites).densify().permute(0, 3, 1, 2)


def _rows(dense: Tensor, sites: ActiveSites) -> Tensor:
    """[B, C, H, W] -> [N, C] at the active sites."""
    return dense.permute(0, 2, 3, 1).flatten(0, 2)[sites.site_of_row]


def subm_conv2d(
    features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites, groups: int
) -> Tensor:
    """`conv2d(m * x)` at the active sites."""
    dense = F.conv2d(_dense(features, sites), weight, bias, padding=weight.shape[-1] // 2, groups=groups)
    return _rows(dense, sites)


def downsample_conv2d(features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites) -> Tensor:
    """`conv2d(m * x, stride=kernel)` at the coarser active sites."""
    factor = weight.shape[-1]
    return _rows(F.conv2d(_dense(features, sites), weight, bias, stride=factor), sites.downsample(factor))


def global_response_norm(
    features: Tensor, gamma: Tensor, beta: Tensor, sites: ActiveSites, eps: float, scope: str
) -> Tensor:
    """GRN with the norms over the sites of each image, or of the batch; inactive sites are zeros."""
    dense = _dense(features, sites).to(torch.promote_types(features.dtype, torch.float32))
    dims = (2, 3) if scope == "image" else (0, 2, 3)
    norms = torch.linalg.vector_norm(dense, dim=dims, keepdim=True)
    response = norms / (norms.mean(dim=1, keepdim=True) + eps)
    out = dense * (gamma[:, None, None] * response + 1) + beta[:, None, None]
    return _rows(out, sites).to(features.dtype)


def grn_mlp(
    features: Tensor,
    fc1: tuple[Tensor, Tensor],
    grn: tuple[Tensor, Tensor],
    fc2: tuple[Tensor, Tensor],
    sites: ActiveSites,
    eps: float,
    scope: str,
) -> Tensor:
    """`fc2(GRN(GELU(fc1(x))))`."""
    hidden = F.gelu(F.linear(features, *fc1))
    return F.linear(global_response_norm(hidden, *grn, sites, eps, scope), *fc2)
