"""The predictions in docs/kernels.md: `python -m fcmae.bench.floor_tables` prints its tables.

At the rates of `floors.H200_EXPECTED`, for ConvNeXt V2 at 224 px, 256 images, mask ratio 0.6, in bf16. No
figure here was measured on the kernels that it is about.
"""

import torch

from fcmae.bench.floors import (
    FUSED_PASSES,
    H200_EXPECTED,
    HIDDEN,
    UNFUSED_PASSES,
    Work,
    depthwise,
    floor_seconds,
    grn_mlp,
    pass_bytes,
    step_floor_seconds,
    step_works,
    visible_tap_share,
)
from fcmae.bench.gpu.kernels import BASE_STAGES, KernelSettings
from fcmae.bench.gpu.report import markdown_table
from fcmae.masking import count_visible
from fcmae.methods import create_method

RATIOS = (0.0, 0.4, 0.6, 0.75, 0.9)
NETWORKS = ("tiny", "base", "large")

GRN_PASSES = (("GELU + sums", 1), ("GELU + apply", 2), ("backward sums", 2), ("backward apply", 4))
"""Launches of the Triton engine and their passes over [N, 4C]; see sparse_ops/backends/triton_gpu/grn.py."""


def tables() -> list[str]:
    """The Markdown tables, in the order of the page."""
    return [_stages(), _convolution(), _passes(), _steps()]


def _rows() -> list[tuple[str, int, int, int]]:
    """Name, rows, channels and tile of each stage."""
    settings = KernelSettings()
    kept = count_visible(settings.grid[0] * settings.grid[1], settings.mask_ratio)
    return [
        (str(stage), settings.batch_size * kept * tile**2, channels, tile)
        for stage, (tile, channels) in enumerate(BASE_STAGES, start=1)
    ]


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def _stages() -> str:
    rates = H200_EXPECTED
    lines = []
    for stage, rows, channels, _ in _rows():
        convolution, one = depthwise("forward", rows, channels), pass_bytes(rows, channels) / rates.copy
        lines.append(
            [
                stage,
                f"{rows} x {channels}",
                f"{_microseconds(convolution.moved / rates.copy)} / "
                f"{_microseconds(convolution.vector / rates.vector)}",
                _microseconds(grn_mlp("forward", rows, channels).matrix / rates.matrix),
                _microseconds(sum(UNFUSED_PASSES.values()) * one),
                _microseconds(sum(FUSED_PASSES.values()) * one),
            ]
        )
    header = ("stage", "rows x C", "depthwise: bytes / FLOPs", "GEMMs", "all passes, unfused", "fused")
    return markdown_table(header, lines)


def _convolution() -> str:
    settings = KernelSettings()
    kept = count_visible(settings.grid[0] * settings.grid[1], settings.mask_ratio)
    lines = []
    for stage, rows, channels, tile in _rows():
        work = depthwise("forward", rows, channels)
        moved, flops = work.moved / H200_EXPECTED.copy, work.vector / H200_EXPECTED.vector
        share = visible_tap_share(settings.grid, kept, tile)
        lines.append(
            [
                stage,
                f"{share:.2f}",
                _microseconds(max(moved, flops)),
                f"{moved / max(moved, flops):.2f}",
                _microseconds(max(moved, flops * share)),
                f"{moved / max(moved, flops * share):.2f}",
            ]
        )
    header = ("stage", "visible taps", "all taps", "of copy at most", "visible taps only", "of copy at most")
    return markdown_table(header, lines)


def _passes() -> str:
    lines = []
    for name, passes in GRN_PASSES:
        times = [
            floor_seconds(Work(name=name, moved=passes * pass_bytes(rows, HIDDEN * channels)), H200_EXPECTED)
            for _, rows, channels, _ in _rows()
        ]
        lines.append([name, str(passes), *(_microseconds(time) for time in times)])
    return markdown_table(("launch", "passes over [N, 4C]", *(f"stage {row[0]}" for row in _rows())), lines)


def _steps() -> str:
    lines = []
    for size in NETWORKS:
        backbone = f"convnextv2_{size}"
        with torch.device("meta"):
            method = create_method("fcmae", backbone=backbone, image_size=224)
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
        sizes = {"batch_size": 256, "patches": 49, "parameters": parameters}
        works = [step_works(backbone, visible_patches=int(49 * (1 - ratio)), **sizes) for ratio in RATIOS]
        times = [step_floor_seconds(work, H200_EXPECTED) for work in works]
        lines.append([size.capitalize(), *(f"{time * 1e3:.1f} ({time / times[0]:.2f})" for time in times)])
    return markdown_table(("network", *(f"mask {ratio:g}" for ratio in RATIOS)), lines)


if __name__ == "__main__":
    print("\n\n".join(tables()))
