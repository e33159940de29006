"""The Triton convolution against the reference, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from sparse_ops import SparseImage, subm_conv2d
from sparse_ops.testing import SITE_CASES, assert_parity, make_sites

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def assert_conv_parity(sites, channels: int, kernel: int, groups: int, **options) -> None:
    def build(backend: str):
        return lambda f, w, b: (
            subm_conv2d(SparseImage(f, sites), w, b, groups=groups, backend=backend).features
        )

    shapes = [(sites.num_sites, channels), (channels, channels // groups, kernel, kernel), (channels,)]
    names = ("features", "weight", "bias")
    assert_parity("subm_conv2d", build, shapes, names=names, backend="triton", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("tile", [4, 2])
def test_depthwise(dtype: torch.dtype, case: str, tile: int) -> None:
    assert_conv_parity(make_sites(case, tile=tile), 20, 7, 20, dtype=dtype)
