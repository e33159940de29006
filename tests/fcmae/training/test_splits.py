"""One loss curve for every split of the same global batch over processes and micro-batches."""

from dataclasses import replace

import pytest
from processes import run_processes
from training_runs import events

from fcmae.config import MSNConfig, PretrainConfig

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


def test_the_curve_of_msn_too(pretrain_config):
    curves = []
    for processes in (1, 2):
        config = pretrain_config(f"msn{processes}", steps=6, base_lr=0.01, batch_size=IMAGES // processes)
        curves.append(losses(replace(config, model=MSN), processes))
    assert max(curves[0]) - min(curves[0]) > 0.01
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
