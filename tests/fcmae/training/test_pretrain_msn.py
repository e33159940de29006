"""MSN through the training loop: exact resume, its schedules, and a collapse that is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import DataConfig, MSNConfig, PretrainConfig, PretrainTrainConfig, RunConfig
from fcmae.data import open_dataset
from fcmae.errors import InputError
from fcmae.training import pretrain as pretraining
from fcmae.training.engine.guards import CollapseGuard
from fcmae.training.engine.logs import RunLog
from fcmae.training.engine.optim import build_adamw, follow_schedules, parameter_groups
from fcmae.training.pretrain import pretrain

MODEL = MSNConfig(
    backbone="convnextv2_atto",
    depths=(1, 1, 1, 1),
    dims=(8, 8, 16, 16),
    drop_path=0.2,
    mask_ratio=0.3,
    focal_views=2,
    focal_size=32,
    prototypes=16,
    hidden_dim=16,
    output_dim=8,
)
TRAIN = PretrainTrainConfig(
    steps=6,
    batch_size=4,
    accumulate=2,
    warmup_steps=2,
    base_lr=0.05,
    start_lr=1e-4,
    weight_decay=0.04,
    final_weight_decay=0.4,
    clip_grad=3.0,
    checkpoint_every=2,
    log_every=1,
)


def run_of(folder: Path, model: MSNConfig = MODEL, **train) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(source="digits", image_size=64, workers=0),
        model=model,
        train=replace(TRAIN, **train),
        run=RunConfig(dir=str(folder), accelerator="cpu"),
    )


def test_interrupted_and_resumed_is_the_uninterrupted_run(tmp_path: Path, monkeypatch):
    whole = pretrain(run_of(tmp_path / "whole"))
    config = run_of(tmp_path / "parts")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            pretrain(config)
    parts = pretrain(config)
    assert last_state(parts)["step"] == 6
    assert_same_tensors(last_state(whole)["model"], last_state(parts)["model"])
    assert_same_tensors(last_state(whole)["optimizer"], last_state(parts)["optimizer"])
    state = last_state(whole)
    assert not [name for name in state["optimizer"] if name.startswith("target_")]
    assert not torch.equal(
        state["model"]["target_encoder.stem.0.weight"], state["model"]["encoder.stem.0.weight"]
    )
    terms = {"cross_entropy", "mean_entropy", "target_entropy", "prototypes_in_use", "embedding_std"}
    assert all(line.keys() >= terms for line in events(whole, "train"))


def test_prototypes_learn_under_bf16(tmp_path: Path):
    run = pretrain(run_of(tmp_path / "run", precision="bf16", steps=2, checkpoint_every=1))
    first, last = (
        torch.load(run / "checkpoints" / f"step_0000000{step}.pt")["model"]["prototypes"] for step in (1, 2)
    )
    assert first.dtype == torch.float32 and not torch.equal(first, last)


@pytest.mark.parametrize("stretch", [1.0, 1.25])
def test_schedules_reach_their_ends_unless_stretched_as_in_the_original(stretch: float):
    model = torch.nn.Linear(2, 2)
    optimizer = build_adamw(
        parameter_groups(model, weight_decay=0.04), betas=(0.9, 0.95), device=torch.device("cpu")
    )
    train = replace(TRAIN, steps=80, min_lr=1e-6, schedule_stretch=stretch)
    rates, decays = [], []
    for step in range(80):
        rates.append(follow_schedules(optimizer, train, step=step, devices=2))
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
    peak = 0.05 * 4 * 2 * 2 / 256
    assert rates[:2] == pytest.approx([(1e-4 + peak) / 2, peak]) and max(rates) == pytest.approx(peak)
    assert decays[0] == [pytest.approx(0.04), 0.0] and decays == sorted(decays)
    assert (rates[-1] == pytest.approx(1e-6)) == (stretch == 1.0)
    assert (decays[-1] == [pytest.approx(0.4), 0.0]) == (stretch == 1.0)
    if stretch > 1:  # step 79 of 100
        assert 0.35 < decays[-1][0] < 0.38 and rates[-1] > 0.05 * peak


@pytest.mark.parametrize("change", [{"schedule_stretch": 0.5}, {"weight_decay": 0.0}])
def test_schedules_without_meaning_are_refused(change: dict):
    with pytest.raises(InputError, match=r"train\.(schedule_stretch|final_weight_decay): expected"):
        replace(TRAIN, **change)


def test_guard_names_a_collapse_once_and_again_after_a_recovery(tmp_path: Path, capsys):
    values = [0.5, 0.01, 0.001, 0.001, 0.001, 0.5, 0.0, 0.0, 0.0]
    with RunLog(tmp_path, start=0, steps=9) as log:
        guard = CollapseGuard(log, lines=3)
        for step, value in enumerate(values, start=1):
            guard.note({"embedding_std": value, "prototypes_in_use": 7.0, "target_entropy": 0.0}, step=step)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"], line["of"]) for line in lines] == [
        ("collapse", 4, "embedding_std"),
        ("collapse", 9, "embedding_std"),
    ]
    assert capsys.readouterr().out.count("collapse at step") == 2


def test_the_loop_names_a_collapse(tmp_path: Path, monkeypatch):
    assert not events(pretrain(run_of(tmp_path / "healthy", base_lr=1e-9, start_lr=0.0)), "collapse")
    # Targets that are all the same picture: what an encoder sees that tells no images apart.
    config = run_of(tmp_path / "run", replace(MODEL, color_jitter=0.0, blur=0.0))
    data = replace(config.data, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    one = open_dataset(data, split="all", labelled=False).subset([0])
    monkeypatch.setattr(pretraining, "open_dataset", lambda *args, **kwargs: one)
    collapsed = pretrain(replace(config, data=data))
    assert sorted((line["step"], line["of"]) for line in events(collapsed, "collapse")) == [
        (5, "embedding_std"),
        (5, "prototypes_in_use"),
    ]


def test_a_batch_of_one_image_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"train\.batch_size: expected at least 2 images, .* got 1"):
        pretrain(run_of(tmp_path / "run", batch_size=1))
