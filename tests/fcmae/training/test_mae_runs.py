"""A whole run of MAE: it learns, resumes exactly, and shows what it paints."""

from dataclasses import replace

import pytest
import torch
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import MAEConfig, PretrainConfig
from fcmae.data import open_dataset
from fcmae.report.command import main as reconstruct
from fcmae.training import pretrain as pretraining
from fcmae.training.pretrain import pretrain

MODEL = MAEConfig(
    backbone="vit_tiny_patch8",
    depths=(2,),
    dims=(16,),
    num_heads=2,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    drop_path=0.2,
)


@pytest.fixture
def mae_config(pretrain_config):
    """(name, model={...}, ...) -> a run of six steps, as `pretrain_config` gives of FCMAE."""

    def make(name: str = "run", *, model=(), **options) -> PretrainConfig:
        return replace(pretrain_config(name, **options), model=replace(MODEL, **dict(model)))

    return make


@pytest.mark.parametrize("sampling", ["random", "block"])
def test_interrupted_and_resumed_is_the_uninterrupted_run(mae_config, monkeypatch, sampling: str):
    model = {"mask_sampling": sampling}
    whole = pretrain(mae_config("whole", model=model))
    config = mae_config("parts", model=model)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            pretrain(config)
    assert last_state(config.run.dir)["step"] == 2
    parts = pretrain(config)
    assert_same_tensors(last_state(whole)["model"], last_state(parts)["model"])
    assert_same_tensors(last_state(whole)["optimizer"], last_state(parts)["optimizer"])
    assert "encoder.pos_embed" not in last_state(whole)["optimizer"]


def test_it_learns_four_digits(mae_config, monkeypatch):
    data = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    config = mae_config(data=data, model={"drop_path": 0.0}, base_lr=1.0, steps=25)
    four = open_dataset(config.data, split="all", labelled=False).subset(range(4))
    monkeypatch.setattr(pretraining, "open_dataset", lambda *args, **kwargs: four)
    losses = [line["loss"] for line in events(pretrain(config), "train")]
    assert losses[0] > 0.9
    assert sum(losses[-3:]) / 3 < 0.7 * losses[0]


def test_bfloat16_and_a_whole_size_of_its_own(mae_config):
    run = pretrain(mae_config(data={"image_size": (32, 64), "in_chans": 1}, precision="bf16", steps=2))
    model = last_state(run)["model"]
    assert model["encoder.pos_embed"].shape == (1, 1 + 4 * 8, 16)
    assert {value.dtype for value in model.values()} == {torch.float32}


@pytest.mark.parametrize("sampling", ["random", "grid"])
def test_reconstruct_paints_the_runs_images(mae_config, sampling: str):
    run = pretrain(mae_config(model={"mask_sampling": sampling}, steps=1))
    assert reconstruct([str(run), "--count", "2"]) == 0
    assert (run / "reconstructions" / "reconstructions_001.png").stat().st_size > 0
