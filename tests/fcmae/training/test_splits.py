"""One loss curve for every split of the same global batch over processes and micro-batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from processes import run_processes
from training_runs import events, last_state

from fcmae.config import MSNConfig, PretrainConfig
from fcmae.training.pretrain import pretrain

IMAGES = 8  # of a step
MSN = MSNConfig(
    backbone="convnextv2_atto",
    depths=(1, 1, 1, 1),
    dims=(8, 8, 16, 16),
    mask_ratio=0.3,
    anchors=2,
    focal_views=1,
    focal_size=32,
    prototypes=16,
    hidden_dim=16,
    output_dim=8,
)


def losses(config: PretrainConfig, processes: int) -> list[float]:
    run = replace(config.run, devices=processes)
    return [line["loss"] for line in events(run_processes(replace(config, run=run), processes), "train")]


def test_the_curve_of_one_process_is_that_of_two_and_of_four(pretrain_config):
    curves = {}
    for processes, accumulate in ((1, 1), (2, 1), (4, 1), (1, 4), (2, 2)):
        config = pretrain_config(
            f"{processes}x{accumulate}",
            model={"drop_path": 0.0},
            steps=10,
            base_lr=0.3,
            batch_size=IMAGES // processes // accumulate,
            accumulate=accumulate,
        )
        curves[processes, accumulate] = losses(config, processes)
    whole = curves.pop((1, 1))
    assert whole[-1] < whole[0] - 0.01  # it learns: a curve that stands still would agree with anything
    for curve in curves.values():
        assert curve == pytest.approx(whole, abs=1e-5)


def test_the_curve_of_msn_on_one_process_is_that_of_two_which_share_it_out(pretrain_config):
    curves = []
    for processes, strategy in ((1, "auto"), (2, "fsdp")):
        config = pretrain_config(f"msn{processes}", steps=6, base_lr=0.01, batch_size=IMAGES // processes)
        run = replace(config.run, strategy=strategy)
        curves.append(losses(replace(config, model=MSN, run=run), processes))
    assert max(curves[0]) - min(curves[0]) > 0.01
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


def test_fsdp_is_ddp_also_across_a_resume(pretrain_config):
    """With stochastic depth, accumulation and clipping; blocks run twice under FSDP."""
    folders = {}
    for name, strategy, source in (
        ("ddp", "ddp", None),
        ("fsdp", "fsdp", None),
        ("fsdp_from_ddp", "fsdp", "ddp"),
        ("ddp_from_fsdp", "ddp", "fsdp"),
    ):
        config = pretrain_config(
            name,
            resume="auto" if source is None else str(folders[source] / "checkpoints" / "step_00000004.pt"),
            base_lr=0.3,
            accumulate=2,
            clip_grad=1.0,
            checkpoint_activations=strategy == "fsdp",
        )
        run = replace(config.run, strategy=strategy, devices=2)
        folders[name] = run_processes(replace(config, run=run), 2)
    whole = folders.pop("ddp")
    curve, state = [line["loss"] for line in events(whole, "train")], last_state(whole)
    for name, folder in folders.items():
        found = [line["loss"] for line in events(folder, "train")]
        assert found == pytest.approx(curve[-len(found) :], abs=1e-6), name
        assert len(found) == (2 if "from" in name else 6)
        others = last_state(folder)
        for part in ("model", "optimizer"):
            assert_close(others[part], state[part])


def assert_close(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, dict):
            assert_close(value, right[name])
        else:
            torch.testing.assert_close(value, right[name], rtol=0, atol=1e-6)


def test_a_resume_says_what_other_batches_change(pretrain_config):
    """The same global batch goes on with the same curve; of another, the log has one line."""
    plain = {"model": {"drop_path": 0.0}, "base_lr": 0.3}
    whole = pretrain(pretrain_config("whole", **plain))
    source = str(whole / "checkpoints" / "step_00000004.pt")
    same = pretrain(pretrain_config("same", resume=source, batch_size=2, accumulate=2, **plain))
    curve, expected = ([line["loss"] for line in events(run, "train")] for run in (same, whole))
    assert curve == pytest.approx(expected[4:], abs=1e-5)
    other = pretrain(pretrain_config("other", resume=source, batch_size=2, **plain))
    assert events(whole, "other_batches") == []
    for run, words in (
        (same, "as 1 x 2 x 2 processes x micro-batches x images, before 1 x 1 x 4: images and masks stay"),
        (other, "with 2 images a step, before 4: the order of images goes on at image 8 instead of 16"),
    ):
        (line,) = events(run, "other_batches")
        assert words in line["change"]
