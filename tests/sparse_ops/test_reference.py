"""The reference against the definition, written with F.conv2d in float64, and by finite differences."""

import pytest
import torch
from torch.nn import functional as F

from sparse_ops import SparseImage, downsample_conv2d, global_response_norm, subm_conv2d
from sparse_ops.testing import SITE_CASES, make_sites


def masked(sites, channels: int) -> torch.Tensor:
    """Random dense features with zeros at the inactive sites, float64 [B, C, H, W]."""
    dense = torch.randn(sites.batch_size, channels, sites.height, sites.width, dtype=torch.float64)
    return dense * sites.active[:, None]


def rows(dense: torch.Tensor, sites) -> torch.Tensor:
    return dense.permute(0, 2, 3, 1).flatten(0, 2)[sites.site_of_row]


@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("groups", [1, 6])
def test_subm_conv2d_is_masked_dense(case: str, kernel: int, groups: int) -> None:
    sites = make_sites(case)
    dense, weight = masked(sites, 6), torch.randn(6, 6 // groups, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    expected = rows(F.conv2d(dense, weight, bias, padding=kernel // 2, groups=groups), sites)
    x = SparseImage(rows(dense, sites), sites)
    out = subm_conv2d(x, weight, bias, groups=groups, backend="reference")
    assert torch.allclose(out.features, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["random", "irregular", "ragged", "no_rows"])
def test_downsample_conv2d_is_masked_dense(case: str) -> None:
    sites = make_sites(case) if case != "irregular" else make_sites("random").downsample(4)
    factor = 2 if case != "irregular" else 3
    dense, weight = masked(sites, 6), torch.randn(4, 6, factor, factor, dtype=torch.float64)
    expected = rows(F.conv2d(dense, weight, stride=factor), sites.downsample(factor))
    out = downsample_conv2d(SparseImage(rows(dense, sites), sites), weight, backend="reference")
    assert torch.allclose(out.features, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", SITE_CASES)
def test_grn_takes_each_images_own_norms(case: str) -> None:
    sites = make_sites(case)
    features = torch.randn(sites.num_sites, 6, dtype=torch.float64)
    gamma, beta = torch.randn(2, 6, dtype=torch.float64)
    out = global_response_norm(SparseImage(features, sites), gamma, beta, backend="reference").features
    for image in range(sites.batch_size):
        own = sites.image_of_row == image
        x = features[own]
        norm = x.square().sum(0).sqrt()
        expected = x + gamma * x * norm / (norm.mean() + 1e-6) + beta
        assert torch.allclose(out[own], expected, rtol=0, atol=1e-12)


def test_grn_over_the_batch_is_the_originals() -> None:
    sites = make_sites("random")
    features = torch.randn(sites.num_sites, 6, dtype=torch.float64)
    gamma, beta = torch.randn(2, 6, dtype=torch.float64)
    out = global_response_norm(
        SparseImage(features, sites), gamma, beta, scope="batch", backend="reference"
    ).features
    norm = features.norm(dim=0)
    expected = gamma * (features * norm / (norm.mean() + 1e-6)) + beta + features
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)


def test_gradcheck() -> None:
    sites = make_sites("ragged", tile=2)
    features = torch.randn(sites.num_sites, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias, gamma = torch.randn(2, 3, dtype=torch.float64).unbind()

    def conv(f, w, b):
        return subm_conv2d(SparseImage(f, sites), w, b, groups=3, backend="reference").features

    def grn(f, g, b):
        return global_response_norm(SparseImage(f, sites), g, b, backend="reference").features

    assert torch.autograd.gradcheck(conv, (features, weight, bias.clone().requires_grad_()))
    pair = (gamma.clone().requires_grad_(), bias.clone().requires_grad_())
    assert torch.autograd.gradcheck(grn, (features, *pair))
