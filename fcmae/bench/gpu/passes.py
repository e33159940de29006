"""The launches behind the Triton engine's operations one by one, and each of their configurations.

A pass works on what the operation gives it, at the sizes of an encoder's stages, without autograd around it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcmae.bench import floors
from fcmae.bench.gpu.kernels import KernelSettings, figures, make_stage_sites
from fcmae.bench.gpu.timing import count_sets, time_calls
from sparse_ops import ActiveSites

KERNEL = 7
LARGEST_CELL = 4
SWEPT_WARPS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One launch at one stage.

    Attributes:
        name: Of the pass.
        parity: The op of `parity.OPS` that it belongs to.
        work: What it has to move and compute.
        make: Gives, for a configuration (None: the engine's choice), what `time_calls` takes.
        configs: What a sweep tries.
    """

    name: str
    parity: str
    work: floors.Work
    make: Callable[[Any], Callable[[int], Callable[[], object]]]
    configs: tuple[Any, ...]


def measure_passes(
    settings: KernelSettings, rates: floors.Rates, failed: dict[str, str], *, sweep: bool
) -> Iterator[dict[str, Any]]:
    """Time every pass at every stage, in the engine's own configuration or in all of them.

    Args:
        settings: Sizes.
        rates: Of the device.
        failed: Ops that have not passed parity, with the reason; their passes are not timed.
        sweep: Whether to try all configurations.
    Returns:
        Like `measure_kernel`, with the pass as "op", no direction, and "config".
    """
    device = torch.device(settings.device)
    for stage, (_, channels) in enumerate(settings.stages, start=1):
        sites = make_stage_sites(stage, settings)
        for item in [*_convolution(sites, channels, settings), *_grn(sites, channels, settings)]:
            for config in item.configs if sweep else (None,):
                fields = {"op": item.name, "direction": "", "stage": stage, "arm": str(settings.engine)}
                fields |= {"rows": sites.num_sites, "channels": channels}
                fields["config"] = None if config is None else dataclasses.asdict(config)
                if item.parity in failed:
                    yield {**fields, "failed": f"not timed: parity failed: {failed[item.parity]}"}
                    continue
                try:
                    sets = count_sets(item.work.moved, device)
                    timing = time_calls(item.make(config), sets, device, repeats=settings.repeats)
                # A configuration that a device cannot hold is a result of the sweep.
                except Exception as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    yield {**fields, "failed": reason}
                    continue
                yield {**fields, **figures(timing, item.work, rates)}


def _randn(settings: KernelSettings, *shape: int) -> Tensor:
    return torch.randn(shape, device=settings.device, dtype=settings.dtype)


def _convolution(sites: ActiveSites, channels: int, settings: KernelSettings) -> list[Pass]:
    from sparse_ops.backends.triton_gpu import conv_launch

    side = min(LARGEST_CELL, sites.tile & -sites.tile)
    index = (sites.site_of_row, sites.row_of_site)
    configs = tuple(
        dataclasses.replace(config, num_warps=warps, cells=config.cells * warps // config.num_warps)
        for config in (*conv_launch.NARROW, *conv_launch.WIDE)
        for warps in SWEPT_WARPS
    )

    def forward(config: Any) -> Callable[[int], Callable[[], object]]:
        def make(_: int) -> Callable[[], object]:
            x = _randn(settings, sites.num_sites, channels)
            taps = _randn(settings, KERNEL**2 + 1, channels).float()
            return lambda: conv_launch.forward_rows(x, taps, *index, kernel=KERNEL, side=side, config=config)

        return make

    def wgrad(config: Any) -> Callable[[int], Callable[[], object]]:
        def make(_: int) -> Callable[[], object]:
            x, grad = (_randn(settings, sites.num_sites, channels) for _ in range(2))
            return lambda: conv_launch.weight_gradient(
                x, grad, *index, kernel=KERNEL, side=side, config=config
            )

        return make

    itemsize, parity = settings.dtype.itemsize, "subm_conv2d depthwise"
    return [
        Pass(name=f"conv {name}", parity=parity, work=work, make=make, configs=configs)
        for name, make, work in (
            ("rows", forward, floors.depthwise("forward", sites.num_sites, channels, itemsize=itemsize)),
            ("weight", wgrad, floors.depthwise("wgrad", sites.num_sites, channels, itemsize=itemsize)),
        )
    ]


def _grn(sites: ActiveSites, channels: int, settings: KernelSettings) -> list[Pass]:
    """GRN's passes over the hidden features, with GELU fused in and, for its worth, without."""
    from sparse_ops.backends.triton_gpu import grn_passes

    width, offsets = floors.HIDDEN * channels, sites.row_offsets
    shape = (sites.num_sites, width)

    def hidden() -> Tensor:
        # Where GELU is nearly the identity: a pass that overwrites its input must not shrink it to zeros.
        return _randn(settings, *shape) + 4

    def sums(backward: bool, gelu: bool) -> Callable[[Any], Callable[[int], Callable[[], object]]]:
        def with_launch(launch: Any) -> Callable[[int], Callable[[], object]]:
            def make(_: int) -> Callable[[], object]:
                x, grad = hidden(), _randn(settings, *shape) if backward else None
                return lambda: grn_passes.column_sums(x, grad, offsets, gelu=gelu, launch=launch)

            return make

        return with_launch

    def apply(backward: bool, gelu: bool) -> Callable[[Any], Callable[[int], Callable[[], object]]]:
        def with_launch(launch: Any) -> Callable[[int], Callable[[], object]]:
            def make(_: int) -> Callable[[], object]:
                groups = offsets.shape[0] - 1
                scale = torch.ones(groups, width, device=settings.device)
                x = hidden()
                if not backward:
                    return lambda: grn_passes.apply(x, scale, None, offsets, gelu=gelu, launch=launch)
                grad, pull, out = _randn(settings, *shape), torch.zeros_like(scale), torch.empty_like(x)
                return lambda: grn_passes.apply_backward(
                    x, grad, scale, pull, offsets, hidden=out, launch=launch
                )

            return make

        return with_launch

    one = floors.pass_bytes(sites.num_sites, width, settings.dtype.itemsize)
    # Without GELU the backward does not write the hidden features again.
    rows = (
        ("sums", sums(False, True), 1),
        ("sums without gelu", sums(False, False), 1),
        ("apply", apply(False, True), 2),
        ("apply without gelu", apply(False, False), 2),
        ("backward sums", sums(True, True), 2),
        ("backward apply", apply(True, True), 4),
    )
    return [
        Pass(
            name=f"grn {name}",
            parity="grn_mlp",
            work=floors.Work(name=name, moved=count * one),
            make=make,
            configs=tuple(grn_passes.LAUNCHES),
        )
        for name, make, count in rows
    ]
