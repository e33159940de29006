"""Where the Triton ops end: sizes beyond 32 bits, and derivatives that custom ops do not have."""

import pytest
import torch
from torch import Tensor

from sparse_ops import SparseImage, global_response_norm, grn_mlp, subm_conv2d
from sparse_ops.testing import make_sites

pytest.importorskip("triton", reason="triton: cannot be imported")

from sparse_ops.backends.triton_gpu import conv_launch

# torch 2.15's own forward mode scripts its formulas when it is first entered.
forward_mode_warnings = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_last_site_is_reached(height: int, width: int, channels: int, kernel: int) -> None:
    """One site is not 0, the last: a kernel whose offsets wrap reads or writes elsewhere."""
    rows = height * width
    site_of_row = torch.arange(rows, device=DEVICE)
    row_of_site = site_of_row.int().view(1, height, width)
    x = torch.zeros(rows, channels, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = 1
    weight = torch.ones(channels, 1, kernel, kernel, device=DEVICE)
    taps = conv_launch.taps_and_bias(weight, None, flipped=False)
    tables = (site_of_row, row_of_site)
    out = conv_launch.forward_rows(x, taps, *tables, kernel=kernel, side=1)
    reached = kernel // 2 + 1
    assert bool((out.view(height, width, channels)[-reached:, -reached:] == 1).all())
    assert int(out.count_nonzero()) == reached**2 * channels
    taps_gradient, bias_gradient = conv_launch.weight_gradient(x, 2 * x, *tables, kernel=kernel, side=1)
    expected = torch.zeros_like(taps_gradient)
    expected[:, :, kernel // 2, kernel // 2] = 2
    assert torch.equal(taps_gradient, expected) and bool((bias_gradient == 2).all())


@pytest.mark.parametrize("kernel", [3, 9])
def test_the_last_site_is_reached(kernel: int) -> None:
    assert_last_site_is_reached(6, 7, 5, kernel)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [3, 9])
def test_the_last_of_more_than_two_to_the_31_elements_is_reached(kernel: int) -> None:
    assert_last_site_is_reached(2**11 + 1, 2**10, 1024, kernel)


@forward_mode_warnings
@pytest.mark.parametrize("backend", ["triton", "scatter"])
@pytest.mark.parametrize("groups", [1, 4])
def test_forward_mode_derivatives_of_a_convolution_are_refused(backend: str, groups: int) -> None:
    sites = make_sites("random")
    weight = torch.ones(4, 4 // groups, 3, 3)

    def conv(features: Tensor) -> Tensor:
        return subm_conv2d(SparseImage(features, sites), weight, groups=groups, backend=backend).features

    assert_refused(conv, sites.num_sites)


@forward_mode_warnings
@pytest.mark.parametrize("backend", ["triton", "scatter"])
def test_forward_mode_derivatives_of_the_tail_are_refused(backend: str) -> None:
    sites = make_sites("random")
    one, square = torch.ones(4), torch.ones(4, 4)

    def tail(features: Tensor) -> Tensor:
        x = SparseImage(features, sites)
        return grn_mlp(x, (square, one), (one, one), (square, one), backend=backend).features

    assert_refused(tail, sites.num_sites)


@forward_mode_warnings
def test_forward_mode_derivatives_of_triton_grn_and_of_gathered_rows_are_refused() -> None:
    sites = make_sites("random")
    one = torch.ones(4)

    def grn(features: Tensor) -> Tensor:
        return global_response_norm(SparseImage(features, sites), one, one, backend="triton").features

    def gather(features: Tensor) -> Tensor:
        dense = features.new_ones(sites.batch_size, sites.height, sites.width, 4) * features[0]
        return SparseImage.from_dense(dense, sites).features

    assert_refused(grn, sites.num_sites)
    assert_refused(gather, sites.num_sites)


def assert_refused(op, rows: int) -> None:
    features = torch.ones(rows, 4)
    with pytest.raises(ValueError, match="expected inputs without forward-mode tangents, got some with them"):
        torch.func.jvp(op, (features,), (features,))
