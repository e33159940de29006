"""Floors against values worked out by hand for ConvNeXt V2-Base: 256 images of 224 px, mask ratio 0.6."""

from pathlib import Path

import pytest

from fcmae.bench.floor_tables import tables
from fcmae.bench.floors import (
    FUSED_PASSES,
    H200_EXPECTED,
    UNFUSED_PASSES,
    Rates,
    Work,
    block_works,
    depthwise,
    floor_seconds,
    grn,
    grn_mlp,
    pass_bytes,
    regular,
    step_floor_seconds,
    step_works,
    visible_tap_share,
)

PAGE = Path(__file__).parents[3] / "docs" / "kernels.md"

# Stage: rows, channels, depthwise bytes and FLOPs, GEMMs, unfused and fused passes; microseconds at 4.3 TB/s,
# 60 TFLOP/s on the float32 lanes and 790 TFLOP/s in bf16 GEMMs.
STAGES = [
    (311_296, 128, 37, 65, 103, 686, 315),
    (77_824, 256, 19, 33, 103, 343, 158),
    (19_456, 512, 9, 16, 103, 171, 79),
    (4_864, 1024, 5, 8, 103, 86, 39),
]


@pytest.mark.parametrize(("rows", "channels", "moved", "flops", "gemms", "unfused", "fused"), STAGES)
def test_stages_of_base(rows, channels, moved, flops, gemms, unfused, fused) -> None:
    rates = H200_EXPECTED
    convolution = depthwise("forward", rows, channels)
    assert round(convolution.moved / rates.copy * 1e6) == moved
    assert round(convolution.vector / rates.vector * 1e6) == flops
    assert round(grn_mlp("forward", rows, channels).matrix / rates.matrix * 1e6) == gemms
    one = pass_bytes(rows, channels) / rates.copy * 1e6
    assert round(sum(UNFUSED_PASSES.values()) * one) == unfused
    assert round(sum(FUSED_PASSES.values()) * one) == fused


def test_depthwise_by_hand() -> None:
    # 10 rows of 4 channels, 7 x 7, two bytes: 40 numbers read and 40 written; 49 multiply-adds each.
    for direction in ("forward", "dgrad", "wgrad"):
        work = depthwise(direction, 10, 4)
        assert (work.moved, work.vector, work.matrix) == (160, 3920, 0)
    assert depthwise("forward", 10, 4, kernel=3, itemsize=4).moved == 320
    assert depthwise("forward", 10, 4, kernel=3).vector == 720


def test_other_kernels_by_hand() -> None:
    assert regular("forward", 10, 4).matrix == 2 * 9 * 10 * 4 * 4
    # Statistics read once, apply reads and writes; backward: two reads for the sums, two reads and a write.
    assert grn("forward", 10, 16).moved == 3 * 320 and grn("forward+backward", 10, 16).moved == 8 * 320
    # fc1 1 + 4, statistics 4, fc2 4 + 1 passes over [10, 4]; two GEMMs of 2 * 10 * 4 * 16.
    forward = grn_mlp("forward", 10, 4)
    assert forward.moved == 14 * 80 and forward.matrix == 2 * 2 * 10 * 4 * 16
    both = grn_mlp("forward+backward", 10, 4)
    # fc2's gradients 5 + 5, sums 8, apply 12, fc1's gradients 5 + 5.
    assert both.moved == (14 + 40) * 80 and both.matrix == 3 * forward.matrix


def test_floor_is_the_largest_of_the_three() -> None:
    rates = Rates(copy=10, matrix=100, vector=1)
    assert floor_seconds(Work(name="a", moved=50, matrix=100, vector=2), rates) == 5
    assert floor_seconds(Work(name="b", moved=10, matrix=700, vector=2), rates) == 7
    assert floor_seconds(Work(name="c", moved=10, matrix=100, vector=9), rates) == 9
    works = [Work(name="a", moved=50), Work(name="b", matrix=700)]
    assert step_floor_seconds(works, rates) == 12


def test_a_block_holds_every_gemm_and_convolution_of_a_step() -> None:
    works = block_works(1000, 64)
    # fc1 and fc2, forward, dgrad and wgrad; the convolution in three directions.
    assert sum(work.matrix for work in works) == 6 * 2 * 1000 * 64 * 256
    assert sum(work.vector for work in works) == 3 * 2 * 49 * 1000 * 64
    assert sum(work.moved for work in works) == (17 + 48) * pass_bytes(1000, 64)


def test_step_of_base() -> None:
    sizes = {"batch_size": 256, "patches": 49, "parameters": 90_000_000}
    sparse = step_works("convnextv2_base", visible_patches=19, **sizes)
    gemm = sum(work.matrix for work in sparse) / H200_EXPECTED.matrix
    # 36 blocks of 103.3 us, three times, and a little for stem, downsampling and decoder.
    assert 36 * 103.3e-6 * 3 < gemm < 1.08 * 36 * 103.3e-6 * 3
    dense = step_works("convnextv2_base", visible_patches=49, **sizes)
    ratio = step_floor_seconds(sparse, H200_EXPECTED) / step_floor_seconds(dense, H200_EXPECTED)
    assert 19 / 49 < ratio < 0.42  # the decoder and the optimiser cost the same in both


def test_visible_taps_by_hand() -> None:
    # Two patches of 2 x 2 sites side by side, one visible: in each direction two of a site's three taps stay
    # in its patch, the third is outside or masked.
    assert visible_tap_share((1, 2), 1, 2, kernel=3) == pytest.approx(2 / 3 * 2 / 3)
    # All visible: only what is outside is left out.
    assert visible_tap_share((2, 2), 4, 1, kernel=3) == pytest.approx((2 / 3) ** 2)
    # Tiles of one site and an even chance for each neighbour: the centre, and a share of the others inside.
    share = visible_tap_share((3, 3), 5, 1, kernel=3)
    inside = ((2 + 3 + 2) / 9) ** 2
    assert share == pytest.approx(1 / 9 + (inside - 1 / 9) * 4 / 8)


def test_the_pages_predictions_are_those_of_this_module() -> None:
    page = PAGE.read_text()
    for table in tables():
        assert table in page, f"docs/kernels.md: expected the table of fcmae.bench.floor_tables:\n{table}"
