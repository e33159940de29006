"""What backends and backbones are held to: inputs by name, an error budget from data, parity, no leak."""

from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor

from sparse_ops import functional
from sparse_ops.image import Image, SparseImage, features_of
from sparse_ops.sites import ActiveSites

SITE_CASES = (
    "random",
    "all_visible",
    "one_patch",
    "empty_image",
    "no_rows",
    "border",
    "ragged",
    "non_square",
    "odd_tile",
    "irregular",
)

ROUNDINGS = {torch.float64: 256, torch.float32: 4, torch.bfloat16: 1, torch.float16: 1}
"""Roundings beyond the reference's own error that another order of summation may cost. In float64 the truth
is the reference itself, so they are all there is.
"""


def make_sites(case: str, *, tile: int = 4, seed: int = 0) -> ActiveSites:
    """Active sites of a named shape, on the CPU.

    Args:
        case: One of `SITE_CASES`.
        tile: Side of the tiles, for the patch-aligned cases.
        seed: Of the random cases.
    """
    generator = torch.Generator().manual_seed(seed)
    if case == "irregular":
        return ActiveSites.from_mask(torch.rand(2, 9, 13, generator=generator) < 0.4)
    if case in ("random", "non_square", "odd_tile"):
        grid = (2, 5) if case == "non_square" else (3, 3)
        ids = torch.rand(3, grid[0] * grid[1], generator=generator).argsort(1)[:, :4].sort(1).values
        return ActiveSites.from_visible_ids(ids, grid=grid, tile=6 if case == "odd_tile" else tile)
    visible = torch.zeros(2, 3, 3, dtype=torch.bool)
    if case == "all_visible":
        visible[:] = True
    elif case == "one_patch":
        visible[:, 1, 1] = True
    elif case == "empty_image":
        visible[1, 0, 1:] = True
    elif case == "border":
        visible[:, 0, 0] = visible[:, 2, 2] = visible[:, 0, 2] = True
    elif case == "ragged":
        visible[0, 1] = True
        visible[1, :, 0] = visible[1, 2] = True
    elif case != "no_rows":
        raise ValueError(f"make_sites: expected case one of {', '.join(SITE_CASES)}, got {case!r}.")
    return ActiveSites.from_patches(visible, tile=tile)


def random_inputs(
    shapes: Sequence[Sequence[int]], *, dtype: torch.dtype, integers: bool = False, seed: int = 0
) -> list[Tensor]:
    """Leaf tensors that want gradients; `integers` in [-2, 2] make every sum exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    draw = (
        (lambda shape: torch.randint(-2, 3, shape, generator=generator).double())
        if integers
        else (lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64))
    )
    return [draw(tuple(shape)).to(dtype).requires_grad_() for shape in shapes]


def outputs_and_gradients(op: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output of `op(*inputs)`, and the gradients of the inputs for a fixed gradient of the output."""
    out = op(*inputs)
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(-2, 3, out.shape, generator=generator).to(out.device, out.dtype)
    gradients = torch.autograd.grad(out, list(inputs), steps)
    return [out.detach(), *gradients]


class NoGradient(torch.autograd.Function):
    """The identity; its backward has no gradient for its input, which autograd hands on as None."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *_: Tensor) -> None:
        return None


def assert_within_budget(
    actual: Tensor,
    reference: Tensor,
    truth: Tensor,
    *,
    what: str = "output",
    roundings: float | None = None,
) -> None:
    """Assert that `actual` errs at most twice as much as the same-dtype reference does, plus some roundings.

    Args:
        actual: The result under test.
        reference: The reference's result in the same dtype.
        truth: The reference's result in float64.
        what: Named in the message.
        roundings: Of the largest value, beyond the reference's own error; None: `ROUNDINGS`, for one op.
    """
    assert actual.shape == truth.shape, f"{what}: shape {list(actual.shape)}, expected {list(truth.shape)}"
    assert actual.dtype == reference.dtype, f"{what}: dtype {actual.dtype}, expected {reference.dtype}"
    if truth.numel() == 0:
        return
    assert bool(torch.isfinite(actual).all()), f"{what}: not finite"
    scale = truth.abs().max().item()
    count = ROUNDINGS[actual.dtype] if roundings is None else roundings
    rounding = count * torch.finfo(actual.dtype).eps * scale
    budget = 2 * (reference.double() - truth).abs().max().item() + rounding
    error = (actual.double() - truth).abs().max().item()
    assert error <= budget, f"{what}: error {error:.2e} is over the budget {budget:.2e} (scale {scale:.2e})"


def assert_parity(
    op: str,
    build: Callable[[str], Callable[..., Tensor]],
    shapes: Sequence[Sequence[int]],
    *,
    backend: str,
    dtype: torch.dtype,
    names: Sequence[str],
    integers: bool = False,
) -> None:
    """Assert that a backend reproduces the reference in output and every gradient, and that it is what ran.

    Args:
        op: Name of the public function.
        build: Gives, for a backend's name, the function of the inputs that calls the op.
        shapes: Of the inputs.
        backend: The backend under test.
        dtype: Of the inputs.
        names: Of the inputs, for the messages.
        integers: Integer inputs and bitwise equality, for ops that only multiply and add.
    """
    inputs = random_inputs(shapes, dtype=dtype, integers=integers)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    truth = outputs_and_gradients(build("reference"), exact)
    reference = outputs_and_gradients(build("reference"), inputs)
    engine = functional.engine(backend)
    with mock.patch.object(engine, op, wraps=getattr(engine, op)) as spy:
        actual = outputs_and_gradients(build(backend), inputs)
    assert spy.called, f"{op}: backend {backend} was named but did not run"
    labels = ("output", *(f"gradient of {name}" for name in names))
    for label, a, r, t in zip(labels, actual, reference, truth, strict=True):
        if integers:
            assert torch.equal(a.double(), t), f"{label}: differs from the float64 reference on integers"
        else:
            assert_within_budget(a, r, t, what=label)


def assert_no_leak(encoder: Callable[..., list[Image]], images: Tensor, visible: Tensor) -> None:
    """Assert that what is masked changes nothing that the encoder gives, outputs and gradients, bit for bit.

    Args:
        encoder: Called as `encoder(images, visible=visible)`; returns the features of its stages.
        images: [B, C, H, W].
        visible: bool [B, Gh, Gw], True = kept.
    """
    patch = images.shape[2] // visible.shape[1]
    masked = ~visible.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    other = torch.where(masked, torch.full_like(images, 1e3), images)
    results = []
    for pixels in (images, other):
        pixels = pixels.clone().requires_grad_()
        features = [_active_rows(x) for x in encoder(pixels, visible=visible)]
        energy = torch.stack([f.square().sum() for f in features]).sum()
        (gradient,) = torch.autograd.grad(energy, pixels)
        results.append([*features, gradient])
    for index, (first, second) in enumerate(zip(*results, strict=True)):
        assert torch.equal(first, second), (
            f"masked pixels change result {index} (stages, then pixel gradients)"
        )
    assert not results[0][-1][masked.expand_as(images)].any(), "masked pixels receive a gradient"


def _active_rows(x: Image) -> Tensor:
    """The features at the active sites, [N, C]; a plain tensor has no inactive ones."""
    if isinstance(x, Tensor):
        return x.flatten(0, 2)
    return x.features if isinstance(x, SparseImage) else features_of(x)[x.sites.active]
