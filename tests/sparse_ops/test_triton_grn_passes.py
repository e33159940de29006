"""The Triton passes around GRN: each kernel against its float64 formula, in every launch configuration.

Without CUDA they run in Triton's interpreter.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.testing import assert_within_budget, random_inputs

pytest.importorskip("triton", reason="triton: cannot be imported")

from sparse_ops.backends.triton_gpu import grn_passes as passes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Small blocks: several splits, several blocks of channels, and a last one of each that is not full.
SMALL = passes.Launch(2, 16, 1)
LAUNCHES = (SMALL, *passes.LAUNCHES)
OFFSETS = (0, 37, 37, 60)
CHANNELS = 37


def by_group(rows: Tensor) -> Tensor:
    """Sums over the rows of each group of OFFSETS, [3, D]."""
    return torch.stack([rows[a:b].sum(0) for a, b in pairwise(OFFSETS)])


def of_rows(groups: Tensor) -> Tensor:
    """[3, D] -> the value of each row's group, [60, D]."""
    counts = torch.tensor(OFFSETS).diff().to(groups.device)
    return groups.repeat_interleave(counts, 0)


def draw(*shapes: tuple[int, ...], dtype: torch.dtype, integers: bool = False) -> list[Tensor]:
    return [t.detach().to(DEVICE) for t in random_inputs(shapes, dtype=dtype, integers=integers)]


def offsets() -> Tensor:
    return torch.tensor(OFFSETS, device=DEVICE)


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_exact_on_integers(dtype: torch.dtype, launch: passes.Launch) -> None:
    x, grad = draw(*[(OFFSETS[-1], CHANNELS)] * 2, dtype=dtype, integers=True)
    squares = passes.column_sums(x, None, offsets(), gelu=False, launch=launch)
    products = passes.column_sums(x, grad, offsets(), gelu=False, launch=launch)
    assert squares.shape[1] == (2 if launch == SMALL else 1)
    assert torch.equal(squares.sum(1).double(), by_group(x.double().square()))
    assert torch.equal(products.sum(1).double(), by_group(x.double() * grad.double()))


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    channels=st.integers(1, 40),
    rows=st.sampled_from([1, 2, 8]),
    width=st.sampled_from([8, 32]),
)
def test_any_counts_and_widths(counts: list[int], channels: int, rows: int, width: int) -> None:
    ends = torch.tensor([0, *counts]).cumsum(0)
    x = torch.randint(-2, 3, (int(ends[-1]), channels)).float().to(DEVICE)
    scale = torch.randint(-2, 3, (len(counts), channels)).float().to(DEVICE)
    options = {"gelu": False, "launch": passes.Launch(rows, width, 1)}
    sums = passes.column_sums(x, None, ends.to(DEVICE), **options).sum(1)
    out = passes.apply(x, scale, None, ends.to(DEVICE), **options)
    for image, (first, last) in enumerate(pairwise(ends.tolist())):
        assert torch.equal(sums[image], x[first:last].square().sum(0))
        assert torch.equal(out[first:last], x[first:last] * scale[image])


@pytest.mark.gpu
def test_features_of_more_than_two_to_the_31_elements() -> None:
    rows, channels = 2**21 + 5, 1024
    x = torch.zeros(rows, channels, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = 3
    ends = torch.tensor([0, rows - 1, rows], device=DEVICE)
    sums = passes.column_sums(x, None, ends, gelu=False).sum(1)
    assert bool((sums[0] == 0).all()) and bool((sums[1] == 9).all())
    scale = torch.full((2, channels), 2.0, device=DEVICE)
    out = passes.apply(x, scale, None, ends, gelu=False)
    assert bool((out[-1] == 6).all()) and not out[:-1].any()
    grad_x, total = passes.apply_backward(x, x, scale, scale, ends)
    assert bool((grad_x[-1] == 12).all()) and bool((total == 3).all())


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
def test_passes_follow_their_formulas(gelu: bool, launch: passes.Launch) -> None:
    x, grad = draw(*[(OFFSETS[-1], CHANNELS)] * 2, dtype=torch.float32)
    scale, pull, shift = draw((3, CHANNELS), (3, CHANNELS), (CHANNELS,), dtype=torch.float32)

    def formulas(x, grad, scale, pull, shift) -> list[Tensor]:
        x = x.requires_grad_()
        h = F.gelu(x) if gelu else x
        (slope,) = torch.autograd.grad(h.sum(), x)
        h, x = h.detach(), x.detach()
        grad_x = (grad * of_rows(scale) + h * of_rows(pull)) * slope
        sums = (grad_x if gelu else grad).sum(0)
        applied = h * of_rows(scale)
        return [by_group(grad * h), applied if gelu else applied + shift, grad_x, sums]

    tensors = (x, grad, scale, pull, shift)
    truths = formulas(*(t.double() for t in tensors))
    references = formulas(*(t.clone() for t in tensors))
    options = {"gelu": gelu, "launch": launch}
    sums = passes.column_sums(x, grad, offsets(), **options).sum(1)
    out = passes.apply(x, scale, None if gelu else shift, offsets(), **options)
    kept, hidden = grad.clone(), torch.empty_like(x) if gelu else None
    grad_x, total = passes.apply_backward(x, grad, scale, pull, offsets(), hidden=hidden, launch=launch)
    if hidden is None:
        assert torch.equal(grad, kept)
    else:
        assert grad_x is grad and torch.equal(hidden, out)
    results = (sums, out, grad_x, total)
    for name, result, reference, truth in zip(
        ("sums", "apply", "grad_x", "column sums"), results, references, truths, strict=True
    ):
        assert_within_budget(result, reference, truth, what=name)


@pytest.mark.parametrize(("splits", "channels"), [(1, 5), (3, 37), (17, 300), (2, 5000)])
def test_scales_follow_their_formula(splits: int, channels: int) -> None:
    shapes = ((3, splits, channels), (3, splits, channels), (channels,))
    squares, changes, gamma = draw(*shapes, dtype=torch.float32)
    squares = squares.square()
    squares[1], squares[:, :, 0] = 0, 0  # an image without rows, and a channel that is absent
    eps = 1e-3

    def formulas(squares, changes, gamma) -> list[Tensor]:
        norms, change = squares.sum(1).sqrt(), changes.sum(1)
        mean = norms.mean(1, keepdim=True) + eps
        scale = 1 + gamma * norms / mean
        leaf = norms.clone().requires_grad_()
        response = 1 + gamma * leaf / (leaf.mean(1, keepdim=True) + eps)
        (grad_norms,) = torch.autograd.grad((response * change).sum(), leaf)
        pull = torch.where(norms > 0, grad_norms / norms, 0.0)
        return [norms, scale, scale, pull, change * norms / mean]

    truths = formulas(squares.double(), changes.double(), gamma.double())
    references = formulas(squares, changes, gamma)
    norms, scale = passes.scales(squares, gamma, eps)
    results = (norms, scale, *passes.scales_backward(changes, norms, gamma, eps))
    names = ("norms", "scale", "scale again", "pull", "grad_gamma")
    for name, result, reference, truth in zip(names, results, references, truths, strict=True):
        assert_within_budget(result, reference, truth, what=name)
    assert torch.equal(results[1], results[2])


def test_gelu_errs_by_two_roundings_for_every_bfloat16() -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    x = values[values.isfinite()].float().view(255, 256).to(DEVICE)
    ends = torch.tensor([0, 255], device=DEVICE)
    one, zero = torch.ones(1, 256, device=DEVICE), torch.zeros(1, 256, device=DEVICE)
    hidden = torch.empty_like(x)
    with np.errstate(over="ignore"):  # the interpreter's; the tail's exponent may be minus infinity
        out = passes.apply(x, one, None, ends, gelu=True)
        slope, _ = passes.apply_backward(x, torch.ones_like(x), one, zero, ends, hidden=hidden)
    exact = x.double().requires_grad_()
    truth = F.gelu(exact)
    (true_slope,) = torch.autograd.grad(truth.sum(), exact)
    rounding = torch.finfo(torch.float32).eps
    assert torch.equal(hidden, out)
    assert bool(((out - truth).abs() <= 2 * rounding * x.abs().clamp_min(1)).all())
    assert bool(((slope - true_slope).abs() <= 2 * rounding).all())


def test_splits_follow_from_shapes_and_keep_four_blocks() -> None:
    wide = passes.LAUNCHES[0]
    assert passes.default_launch(512) == wide and passes.default_launch(160) == passes.LAUNCHES[1]
    # The stages of ConvNeXt V2-Base at 256 images of 19 patches.
    splits = [passes.num_splits(256 * 19 * 64 // 4**i, 256, 512 * 2**i, wide) for i in range(4)]
    assert splits == [16, 8, 2, 1]
    assert passes.num_splits(0, 2, 512, wide) == 1
