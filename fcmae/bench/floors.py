"""What an operation has to move and to compute, however it is written: the floors of kernels and steps.

Bytes are counted as passes over `[N, C]` features: one pass reads or writes `N * C` numbers; hidden features
`[N, 4C]` are four passes. Weights, indices and statistics are small beside them and left out of a kernel's
bytes. A floor is the largest of bytes over the copy rate, GEMM FLOPs over the GEMM rate and other FLOPs over
the rate of the float32 lanes; the floor of a step is the sum over its operations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fcmae.models import find_preset

UNFUSED_PASSES = {
    "depthwise": 2,
    "norm": 2,
    "fc1": 5,
    "gelu": 8,
    "grn_stats": 4,
    "grn_apply": 8,
    "fc2": 5,
    "residual": 3,
}
"""Passes of a block's forward when every operation reads its input and writes its output."""

FUSED_PASSES = {
    "depthwise + norm": 2,
    "fc1": 5,
    "gelu + grn_stats": 4,
    "gelu + grn_apply in fc2": 5,
    "residual in fc2": 1,
}
"""Passes of the same forward when only x, LayerNorm's output and fc1's output are written."""

FUSED_BACKWARD_PASSES = {
    "fc2 dgrad": 5,
    "fc2 wgrad": 5,
    "grn_stats backward": 8,
    "gelu + grn_apply backward": 12,
    "fc1 dgrad": 5,
    "fc1 wgrad": 5,
    "norm backward": 3,
    "depthwise dgrad + residual": 3,
    "depthwise wgrad": 2,
}
"""Passes of the backward from what FUSED_PASSES leaves behind; GELU and GRN are redone."""

HIDDEN = 4
"""Width of a block's hidden features as a multiple of C."""

ADAMW_BYTES = 28
"""A parameter in float32: weight, gradient and two moments read, weight and moments written."""

CAST_BYTES = 6
"""A weight under autocast: float32 read, bfloat16 written."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation has to do.

    Attributes:
        name: Of the operation.
        moved: Bytes read and written.
        matrix: FLOPs of a GEMM.
        vector: FLOPs outside GEMMs.
    """

    name: str
    moved: int = 0
    matrix: int = 0
    vector: int = 0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device reaches: bytes, GEMM FLOPs and float32 FLOPs a second."""

    copy: float
    matrix: float
    vector: float


H200_EXPECTED = Rates(copy=4.3e12, matrix=790e12, vector=60e12)
"""Copy and bf16 GEMM as measured elsewhere on an H200, float32 near its peak. For predictions only."""


def floor_seconds(work: Work, rates: Rates) -> float:
    """The least time of one operation."""
    return max(work.moved / rates.copy, work.matrix / rates.matrix, work.vector / rates.vector)


def step_floor_seconds(works: Iterable[Work], rates: Rates) -> float:
    """The least time of operations that run one after another."""
    return sum(floor_seconds(work, rates) for work in works)


def pass_bytes(rows: int, channels: int, itemsize: int = 2) -> int:
    """Bytes of one pass over [rows, channels]."""
    return rows * channels * itemsize


def depthwise(direction: str, rows: int, channels: int, *, kernel: int = 7, itemsize: int = 2) -> Work:
    """One direction ("forward", "dgrad", "wgrad") of a depthwise convolution.

    Two passes in each: forward reads x and writes y, dgrad reads one gradient and writes the other, wgrad
    reads x and the gradient. All `kernel**2` taps count, also those that meet a masked patch.
    """
    flops = 2 * kernel**2 * rows * channels
    return Work(name=f"depthwise {direction}", moved=2 * pass_bytes(rows, channels, itemsize), vector=flops)


def visible_tap_share(grid: tuple[int, int], kept: int, tile: int, *, kernel: int = 7) -> float:
    """Expected share of a convolution's taps that meet a visible site: what need not be skipped.

    Of the sites that a visible site's taps reach, those in its own patch are visible, those outside the image
    are not, and those in another patch are with the chance that `kept - 1` of the other patches give them.
    """
    own = inside = 1.0
    for extent in grid:
        taps = [(a, a + step - kernel // 2) for a in range(extent * tile) for step in range(kernel)]
        reached = [(a, b) for a, b in taps if 0 <= b < extent * tile]
        inside *= len(reached) / len(taps)
        own *= sum(a // tile == b // tile for a, b in reached) / len(taps)
    return own + (inside - own) * (kept - 1) / (grid[0] * grid[1] - 1)


def regular(direction: str, rows: int, channels: int, *, kernel: int = 3, itemsize: int = 2) -> Work:
    """One direction of a convolution with groups=1 that keeps the width."""
    return Work(
        name=f"regular {direction}",
        moved=2 * pass_bytes(rows, channels, itemsize),
        matrix=2 * kernel**2 * rows * channels**2,
    )


def grn(direction: str, rows: int, channels: int, *, itemsize: int = 2) -> Work:
    """GRN over features of `channels`: statistics and apply, each with its own pass.

    Forward: x read for the norms, x read again, y written. Backward: gradient and x read for the sums, both
    read again, the gradient written.
    """
    passes = {"forward": 3, "backward": 5, "forward+backward": 8}[direction]
    return Work(name=f"grn {direction}", moved=passes * pass_bytes(rows, channels, itemsize))


def grn_mlp(direction: str, rows: int, channels: int, *, itemsize: int = 2) -> Work:
    """`fc2(GRN(GELU(fc1(x))))` by the fused passes, C to 4C to C."""
    forward = FUSED_PASSES["fc1"] + FUSED_PASSES["gelu + grn_stats"] + FUSED_PASSES["gelu + grn_apply in fc2"]
    backward = sum(
        count for name, count in FUSED_BACKWARD_PASSES.items() if name.startswith(("fc", "grn", "gelu"))
    )
    gemms = 4 * HIDDEN * rows * channels**2
    passes, matrix = {
        "forward": (forward, gemms),
        "forward+backward": (forward + backward, 3 * gemms),
    }[direction]
    return Work(
        name=f"grn_mlp {direction}", moved=passes * pass_bytes(rows, channels, itemsize), matrix=matrix
    )


def gemm(name: str, rows: int, inner: int, outer: int, *, moved: int) -> Work:
    """[rows, inner] times [inner, outer]."""
    return Work(name=name, moved=moved, matrix=2 * rows * inner * outer)


def block_works(rows: int, channels: int, *, kernel: int = 7, itemsize: int = 2) -> list[Work]:
    """Forward and backward of a ConvNeXt V2 block over `rows` sites, by the fused passes."""
    taps = 2 * kernel**2 * rows * channels
    works = []
    for name, passes in {**FUSED_PASSES, **FUSED_BACKWARD_PASSES}.items():
        moved = passes * pass_bytes(rows, channels, itemsize)
        if name in ("fc1", "fc1 dgrad", "fc1 wgrad", "gelu + grn_apply in fc2", "fc2 dgrad", "fc2 wgrad"):
            works.append(gemm(name, rows, channels, HIDDEN * channels, moved=moved))
        else:
            works.append(Work(name=name, moved=moved, vector=taps if name.startswith("depthwise") else 0))
    return works


def linear_works(name: str, rows: int, inner: int, outer: int, *, itemsize: int = 2) -> list[Work]:
    """Forward, dgrad and wgrad of a linear layer."""
    moved = pass_bytes(rows, inner + outer, itemsize)
    return [
        gemm(f"{name} {pass_}", rows, inner, outer, moved=moved) for pass_ in ("forward", "dgrad", "wgrad")
    ]


def norm_works(rows: int, channels: int, *, itemsize: int = 2) -> list[Work]:
    """Forward and backward of a LayerNorm by itself: x to y; gradient and x to gradient."""
    moved = pass_bytes(rows, channels, itemsize)
    return [Work(name="norm forward", moved=2 * moved), Work(name="norm backward", moved=3 * moved)]


def step_works(
    backbone: str,
    *,
    batch_size: int,
    visible_patches: int,
    patches: int,
    parameters: int,
    in_chans: int = 3,
    patch_size: int = 32,
    stem_stride: int = 4,
    decoder_dim: int = 512,
) -> list[Work]:
    """A whole FCMAE step under bf16 autocast: encoder, decoder of one block, loss, backward and AdamW.

    Args:
        backbone: Name of the encoder; its sites are those of `visible_patches`.
        batch_size: Images.
        visible_patches: Patches of an image that the encoder computes; all of them for a dense encoder.
        patches: Patches of an image, which the decoder and the loss see.
        parameters: Trained numbers, in float32.
        in_chans: Channels of the images, float32.
        patch_size: Side of a patch in pixels.
        stem_stride: Pixels per site of the first stage.
        decoder_dim: Width of the decoder.
    """
    preset = find_preset(backbone)
    tile = patch_size // stem_stride
    site_pixels = in_chans * stem_stride**2
    rows = batch_size * visible_patches * tile**2
    width = preset.dims[0]
    # The pixels want no gradient: no dgrad of the stem.
    stem = pass_bytes(rows, site_pixels, 4) + pass_bytes(rows, width)
    works = [gemm(f"stem {name}", rows, site_pixels, width, moved=stem) for name in ("forward", "wgrad")]
    works += norm_works(rows, width)
    for stage, (depth, channels) in enumerate(zip(preset.depths, preset.dims, strict=True)):
        if stage:
            works += norm_works(rows, width)
            rows //= 4
            works += linear_works("downsample", rows, 4 * width, channels)
        works += depth * block_works(rows, channels)
        width = channels
    works += linear_works("projection", rows, width, decoder_dim)
    painted = batch_size * patches
    works.append(Work(name="densify", moved=2 * pass_bytes(rows + painted, decoder_dim)))
    works += block_works(painted, decoder_dim)
    pixels = in_chans * patch_size**2
    works += linear_works("prediction", painted, decoder_dim, pixels)
    # Prediction and pixels read in the forward, both read and the gradient written in the backward.
    works.append(Work(name="loss", moved=2 * pass_bytes(painted, pixels, 6) + pass_bytes(painted, pixels)))
    works.append(Work(name="weights", moved=(ADAMW_BYTES + CAST_BYTES) * parameters))
    return works
