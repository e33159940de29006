"""Each kernel by itself, at the sizes of an encoder's stages: ours, PyTorch's, and other engines'."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcmae.bench import floors
from fcmae.bench.gpu.timing import REPEATS, Timing, count_sets, time_calls
from fcmae.masking import count_visible, random_visible_ids
from sparse_ops import (
    ActiveSites,
    Backend,
    SparseImage,
    global_response_norm,
    grn_mlp,
    linear,
    subm_conv2d,
)

BASE_STAGES = ((8, 128), (4, 256), (2, 512), (1, 1024))
"""Tile and channels of ConvNeXt V2-Base's stages at 224 px."""

OTHER_ENGINES = (Backend.SPCONV, Backend.WARPCONVNET)
PARITY_OF = {
    "depthwise": "subm_conv2d depthwise",
    "regular": "subm_conv2d regular",
    "grn": "global_response_norm",
    "grn_mlp": "grn_mlp",
}
"""The op of `parity.OPS` that a kernel's timing depends on."""


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One arm of one operation in one direction at one stage.

    Attributes:
        op: "depthwise", "regular", "grn" or "grn_mlp".
        direction: "forward", "dgrad", "wgrad" (with the bias's gradient) or "forward+backward".
        stage: Counted from 1.
        arm: An engine's name; "cudnn": the dense convolution of the masked grid in channels-last, its mask
            already applied; "composed": grn_mlp as its four ops; "compiled": as PyTorch ops through
            torch.compile.
    """

    op: str
    direction: str
    stage: int
    arm: str


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """What the cases share."""

    device: str = "cuda"
    batch_size: int = 256
    grid: tuple[int, int] = (7, 7)
    mask_ratio: float = 0.6
    stages: tuple[tuple[int, int], ...] = BASE_STAGES
    dtype: torch.dtype = torch.bfloat16
    repeats: int = REPEATS
    engine: str = Backend.TRITON
    compiled: bool = True
    """Whether the arm that goes through torch.compile is among the cases."""


def planned_kernels(settings: KernelSettings) -> tuple[list[KernelCase], list[KernelCase]]:
    """The cases in order of importance, those before the passes and those after them: what is last is what
    time may not allow.
    """
    every = range(1, len(settings.stages) + 1)
    both, convolution = ("forward", "forward+backward"), ("forward", "dgrad", "wgrad")
    first = [
        ("depthwise", convolution, (settings.engine, "cudnn", Backend.SCATTER), every),
        ("grn_mlp", both, (settings.engine, "composed", Backend.SCATTER), every),
        ("grn", both, (settings.engine, Backend.SCATTER), every),
    ]
    others = [name for name in OTHER_ENGINES if importlib.util.find_spec(name)]
    last = [
        ("grn_mlp", ("forward+backward",), ("compiled",) if settings.compiled else (), every),
        ("regular", convolution, (settings.engine, Backend.SCATTER, "cudnn", *others), range(2, 3)),
    ]
    return _cases(first), _cases(last)


def _cases(groups: list[tuple[str, tuple[str, ...], tuple[str, ...], range]]) -> list[KernelCase]:
    return [
        KernelCase(op=op, direction=direction, stage=stage, arm=str(arm))
        for op, directions, arms, stages in groups
        for stage in stages
        for direction in directions
        for arm in dict.fromkeys(arms)
    ]


def measure_kernel(case: KernelCase, settings: KernelSettings, rates: floors.Rates) -> dict[str, Any]:
    """Time a case.

    Returns:
        The case's fields, "rows", "channels", "ms", "gb_per_second" over the bytes that it must move and
        "of_copy", their share of the copy rate, "floor_ms", "of_floor", "sets" and "uncaptured"; or "failed".
    """
    tile, channels = settings.stages[case.stage - 1]
    patches = settings.grid[0] * settings.grid[1]
    seen = patches if case.arm == "cudnn" else count_visible(patches, settings.mask_ratio)
    rows = settings.batch_size * seen * tile**2
    fields = {"op": case.op, "direction": case.direction, "stage": case.stage, "arm": case.arm}
    fields |= {"rows": rows, "channels": channels}
    work = work_of(case, rows, channels, torch.empty(0, dtype=settings.dtype).element_size())
    device = torch.device(settings.device)
    try:
        make = _dense_call(case, settings) if case.arm == "cudnn" else _sparse_call(case, settings)
        sets = count_sets(work.moved, device)
        timing = time_calls(make, sets, device, repeats=settings.repeats)
    # One case's failure, in whichever compiler or kernel, is a result like any other.
    except Exception as error:
        return {**fields, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {**fields, **figures(timing, work, rates)}


def figures(timing: Timing, work: floors.Work, rates: floors.Rates) -> dict[str, Any]:
    """What is reported of a timing, against what the operation has to move and compute."""
    floor = floors.floor_seconds(work, rates)
    return {
        "ms": timing.median * 1e3,
        "ms_range": [min(timing.seconds) * 1e3, max(timing.seconds) * 1e3],
        "gb_per_second": work.moved / timing.median / 1e9,
        "of_copy": work.moved / timing.median / rates.copy,
        "floor_ms": floor * 1e3,
        "of_floor": floor / timing.median,
        "sets": timing.sets,
        "uncaptured": timing.uncaptured,
    }


def work_of(case: KernelCase, rows: int, channels: int, itemsize: int) -> floors.Work:
    """The floor of a case."""
    if case.op == "grn":  # over the hidden features
        return floors.grn(case.direction, rows, floors.HIDDEN * channels, itemsize=itemsize)
    formula = {"depthwise": floors.depthwise, "regular": floors.regular, "grn_mlp": floors.grn_mlp}[case.op]
    return formula(case.direction, rows, channels, itemsize=itemsize)


def make_stage_sites(case_stage: int, settings: KernelSettings) -> ActiveSites:
    """Random masks of a batch at a stage."""
    generator = torch.Generator().manual_seed(0)
    ids = random_visible_ids(
        settings.batch_size,
        settings.grid,
        mask_ratio=settings.mask_ratio,
        generator=generator,
        device=settings.device,
    )
    return ActiveSites.from_visible_ids(ids, grid=settings.grid, tile=settings.stages[case_stage - 1][0])


def _sparse_call(case: KernelCase, settings: KernelSettings) -> Callable[[int], Callable[[], object]]:
    sites = make_stage_sites(case.stage, settings)
    channels = settings.stages[case.stage - 1][1]
    shapes, run = _operation(case, sites, channels, settings.engine)

    def make(_: int) -> Callable[[], object]:
        inputs = [
            torch.randn(shape, device=settings.device, dtype=settings.dtype) * scale
            for shape, scale in shapes
        ]
        if case.direction == "forward":
            return _without_gradients(run, inputs)
        wanted = {"dgrad": inputs[:1], "wgrad": inputs[1:], "forward+backward": inputs}[case.direction]
        for tensor in wanted:
            tensor.requires_grad_()
        if case.direction == "forward+backward":
            step = torch.randn_like(run(*inputs))
            return lambda: torch.autograd.grad(run(*inputs), wanted, step)
        out = run(*inputs)
        step = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, wanted, step, retain_graph=True)

    return make


def _without_gradients(run: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return run(*inputs)

    return call


def _operation(
    case: KernelCase, sites: ActiveSites, channels: int, engine: str
) -> tuple[list[tuple[tuple[int, ...], float]], Callable[..., Tensor]]:
    """Shapes and standard deviations of the inputs, features first, and the function of them."""
    rows, hidden = sites.num_sites, floors.HIDDEN * channels
    if case.op in ("depthwise", "regular"):
        groups, kernel = (channels, 7) if case.op == "depthwise" else (1, 3)

        def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            image = SparseImage(x, sites)
            return subm_conv2d(image, weight, bias, groups=groups, backend=case.arm).features  # type: ignore[union-attr]

        weight = (channels, channels // groups, kernel, kernel)
        return [((rows, channels), 1.0), (weight, 0.1), ((channels,), 0.1)], convolve
    if case.op == "grn":

        def normalise(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            image = SparseImage(x, sites)
            return global_response_norm(image, gamma, beta, backend=case.arm).features  # type: ignore[union-attr]

        return [((rows, hidden), 1.0), ((hidden,), 0.1), ((hidden,), 0.1)], normalise
    return [
        ((rows, channels), 1.0),
        ((hidden, channels), channels**-0.5),
        ((hidden,), 0.1),
        ((hidden,), 0.1),
        ((hidden,), 0.1),
        ((channels, hidden), hidden**-0.5),
        ((channels,), 0.1),
    ], _mlp(case.arm, sites, engine)


def _mlp(arm: str, sites: ActiveSites, engine: str) -> Callable[..., Tensor]:
    def fused(x: Tensor, w1: Tensor, b1: Tensor, g: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        image = SparseImage(x, sites)
        return grn_mlp(image, (w1, b1), (g, b), (w2, b2), backend=arm).features  # type: ignore[union-attr]

    def composed(x: Tensor, w1: Tensor, b1: Tensor, g: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        backend = engine if arm == "composed" else Backend.SCATTER
        hidden = SparseImage(F.gelu(linear(x, w1, b1)), sites)
        return linear(global_response_norm(hidden, g, b, backend=backend).features, w2, b2)  # type: ignore[union-attr]

    if arm == "compiled":
        # A stage has its own shapes: without this the second would be compiled for any.
        return torch.compile(composed, dynamic=False)
    return composed if arm == "composed" else fused


def _dense_call(case: KernelCase, settings: KernelSettings) -> Callable[[int], Callable[[], object]]:
    """PyTorch's convolution of the whole grid, zeros at the masked sites, in channels-last."""
    sites = make_stage_sites(case.stage, settings)
    channels = settings.stages[case.stage - 1][1]
    groups, kernel = (channels, 7) if case.op == "depthwise" else (1, 3)

    def image() -> Tensor:
        rows = torch.randn(sites.num_sites, channels, device=settings.device, dtype=settings.dtype)
        return SparseImage(rows, sites).densify().permute(0, 3, 1, 2)

    def make(_: int) -> Callable[[], object]:
        x, step = image(), image()
        shape = (channels, channels // groups, kernel, kernel)
        weight = torch.randn(shape, device=settings.device, dtype=settings.dtype) * 0.1
        bias = torch.randn(channels, device=settings.device, dtype=settings.dtype)
        pad = kernel // 2
        if case.direction == "forward":
            return lambda: F.conv2d(x, weight, bias, padding=pad, groups=groups)
        dgrad = case.direction == "dgrad"
        mask = [dgrad, not dgrad, not dgrad]
        return lambda: torch.ops.aten.convolution_backward(
            step, x, weight, [channels], [1, 1], [pad, pad], [1, 1], False, [0, 0], groups, mask
        )

    return make
