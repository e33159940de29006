"""The step that an arm times, in this process: equal arms are equal; masks, moments, engines."""

import dataclasses

import pytest
import torch

from fcmae.bench.arms import StepSpec
from fcmae.bench.gpu.training import MASKS, TrainingStep, draw_masks, engines_of

SPEC = StepSpec(
    arm="sparse",
    backbone="convnextv2_atto",
    batch_size=2,
    image_size=64,
    mask_ratio=0.5,
    precision="fp32",
    backend="scatter",
    device="cpu",
    compile=False,
    threads=1,
)


@pytest.mark.parametrize("mask_ratio", [0.5, 0.0])
def test_equal_arms_begin_with_equal_loss_and_gradients(mask_ratio: float) -> None:
    sparse, dense = (
        TrainingStep(dataclasses.replace(SPEC, arm=arm, mask_ratio=mask_ratio)).facts
        for arm in ("sparse", "masked_dense")
    )
    assert sparse["loss"] == pytest.approx(dense["loss"], rel=1e-4)
    assert sparse["grad_norm"] == pytest.approx(dense["grad_norm"], rel=1e-3)
    assert sparse["parameters"] == dense["parameters"] > 0 and sparse["grad_norm"] > 0


def test_a_turn_times_each_step_and_trains() -> None:
    step = TrainingStep(SPEC)
    before = [parameter.detach().clone() for parameter in step.network.parameters()]
    result = step.turn(3)
    assert len(result["seconds"]) == 3 and min(result["seconds"]) > 0
    assert result["peak_bytes"] > 0 and step.facts["state_bytes"] > 8 * step.facts["parameters"]
    changed = [not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True)]
    assert all(changed)
    assert all(parameter.grad is None for parameter in step.network.parameters())


def test_masks_are_the_same_in_every_arm_and_change_from_step_to_step() -> None:
    first, again = draw_masks(SPEC, 32), draw_masks(dataclasses.replace(SPEC, arm="masked_dense"), 32)
    assert len(first) == MASKS and all(map(torch.equal, first, again))
    assert first[0].shape == (2, 2) and not all(torch.equal(first[0], mask) for mask in first)
    (every, *_) = draw_masks(dataclasses.replace(SPEC, mask_ratio=0.0), 32)
    assert every.tolist() == [[0, 1, 2, 3]] * 2


def test_a_named_engine_is_the_one_that_runs() -> None:
    engines = engines_of("scatter", torch.device("cpu"))
    assert engines == {"subm_conv2d": "scatter", "global_response_norm": "scatter", "grn_mlp": "scatter"}
