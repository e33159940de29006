"""The fine-tuning loop: resumed = uninterrupted, it learns, it starts from every kind of weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import ClassifierConfig
from fcmae.convert import to_timm
from fcmae.convert.files import write_weights
from fcmae.data import open_dataset
from fcmae.errors import InputError
from fcmae.training import finetune as finetuning
from fcmae.training.classifier import build_classifier
from fcmae.training.engine.checkpoints import newest_checkpoint
from fcmae.training.evaluate import with_best
from fcmae.training.finetune import build_mixup, finetune
from fcmae.training.pretrain import pretrain


@pytest.fixture
def pretrained(pretrain_config) -> Path:
    """A run folder with weights of depths and dims of its own."""
    return pretrain(pretrain_config("pretrained", steps=1))


def test_interrupted_and_resumed_is_the_uninterrupted_run(finetune_config, pretrained: Path, monkeypatch):
    model = {"weights": str(pretrained)}
    metrics = finetune(finetune_config("whole", model=model))
    config = finetune_config("parts", model=model, accumulate=1)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            finetune(config)
    # The evaluation after step 3 is done again; the pretrained weights are not needed any more.
    (pretrained / "checkpoints").rename(pretrained / "moved")
    assert finetune(config) == metrics
    whole, parts = last_state(Path(config.run.dir).parent / "whole"), last_state(config.run.dir)
    for part in ("model", "optimizer", "ema"):
        assert_same_tensors(whole[part], parts[part])
    assert [line["step"] for line in events(config.run.dir, "eval")] == [3, 6]
    assert finetune(config) == metrics  # a finished run reports what it found


def test_metrics(finetune_config, pretrained: Path):
    config = finetune_config(model={"weights": str(pretrained)})
    metrics = finetune(config)
    assert metrics.keys() == {
        "accuracy", "loss", "ema_accuracy", "ema_loss",
        "best_accuracy", "best_accuracy_step", "best_ema_accuracy", "best_ema_accuracy_step",
    }  # fmt: skip
    last = events(config.run.dir, "eval")[-1]
    assert {name: last[name] for name in metrics} == metrics
    state = last_state(config.run.dir)
    assert state["metrics"] == metrics
    assert state["classes"] == [str(digit) for digit in range(10)]
    assert not torch.equal(state["ema"]["head.fc.weight"], state["model"]["head.fc.weight"])


def test_best_is_kept():
    first = with_best({"accuracy": 0.5, "loss": 1.0}, {}, step=1)
    second = with_best({"accuracy": 0.4, "loss": 2.0}, first, step=2)
    assert second == {"accuracy": 0.4, "loss": 2.0, "best_accuracy": 0.5, "best_accuracy_step": 1}
    assert with_best({"accuracy": 0.5, "loss": 0.0}, second, step=3)["best_accuracy_step"] == 1


def test_overfits_one_batch(finetune_config, pretrained: Path, monkeypatch):
    config = finetune_config(
        model={"weights": str(pretrained), "drop_path": 0.0, "head_init_scale": 1.0},
        data={"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False},
        base_lr=1.5, steps=20, evaluate_every=20, checkpoint_every=20, label_smoothing=0.0, layer_decay=1.0,
        mixup=0.0, cutmix=0.0, rand_augment=None, random_erasing=0.0, ema_decay=None,
    )  # fmt: skip
    digits = open_dataset(config.data, split="train", labelled=True)
    assert digits.labels is not None
    four = digits.subset([digits.labels.index(label) for label in range(4)])
    monkeypatch.setattr(finetuning, "open_dataset", lambda *args, **kwargs: four)  # evaluated on itself
    metrics = finetune(config)
    losses = [line["loss"] for line in events(config.run.dir, "train")]
    assert losses[0] > 2.0
    assert losses[-1] < 0.25 * losses[0]
    assert metrics["accuracy"] == 1.0


def test_starts_from_a_checkpoint_a_run_folder_and_a_converted_file(
    finetune_config, pretrained: Path, tmp_path: Path
):
    state = newest_checkpoint(pretrained, kind="pretrain")
    assert state is not None
    converted = tmp_path / "converted.safetensors"
    weights, _ = to_timm(state[1]["model"])
    write_weights(converted, weights, metadata={}, force=False)
    config = finetune_config().model
    for source in (pretrained, state[0], converted):
        classifier, depths = build_classifier(config, str(source), num_classes=3, in_chans=3)
        assert depths == (1, 1, 1, 1)
        loaded = classifier.state_dict()
        assert torch.equal(
            loaded["stages.3.blocks.0.conv_dw.weight"], weights["stages.3.blocks.0.conv_dw.weight"]
        )
        assert loaded["head.fc.weight"].shape == (3, 16)


def test_stems_that_timm_builds_otherwise(finetune_config, pretrain_config):
    run_dir = pretrain(pretrain_config("small", steps=1, model={"stem_stride": 2, "patch_size": 16}))
    classifier, _ = build_classifier(finetune_config().model, str(run_dir), num_classes=2, in_chans=3)
    assert classifier.get_parameter("stem.0.weight").shape == (8, 3, 2, 2)
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_head_starts_at_the_scale_of_the_original():
    torch.manual_seed(0)
    config = ClassifierConfig(backbone="convnextv2_atto", head_init_scale=0.001)
    classifier, depths = build_classifier(config, None, num_classes=100, in_chans=1)
    weight = classifier.get_parameter("head.fc.weight")
    assert weight.std().item() == pytest.approx(2e-5, rel=0.02)
    assert depths == (2, 2, 6, 2)
    assert classifier.get_parameter("stem.0.weight").shape[1] == 1


def test_weights_that_do_not_fit_are_refused(finetune_config, pretrained: Path):
    config = finetune_config(model={"weights": str(pretrained), "backbone": "convnextv2_tiny"})
    with pytest.raises(InputError, match=r"model\.backbone: expected convnextv2_atto, .*got convnextv2_tiny"):
        finetune(config)
    config = finetune_config(model={"weights": str(pretrained)}, data={"in_chans": 1}, rand_augment=None)
    with pytest.raises(InputError, match=r"data\.in_chans: expected that of the weights, 3, got 1"):
        finetune(config)
    with pytest.raises(InputError, match="Did you mean convnextv2_atto"):
        finetune(finetune_config(model={"backbone": "convnextv2_ato"}))


def test_mixup_needs_pairs(finetune_config):
    with pytest.raises(InputError, match=r"train\.batch_size: expected an even number"):
        build_mixup(finetune_config(batch_size=3).train, num_classes=2)
    assert build_mixup(finetune_config(batch_size=3, mixup=0.0, cutmix=0.0).train, num_classes=2) is None


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    finetune_config, pretrained, monkeypatch
):
    build, calls = finetuning.build_classifier, []

    class Poisoned(nn.GELU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(input) / (len(calls) < 4)

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        classifier, depths = build(*args, **kwargs)
        classifier.get_submodule("stages.2.blocks.0.mlp").act = Poisoned()
        return classifier, depths

    monkeypatch.setattr(finetuning, "build_classifier", poisoned)
    config = finetune_config(model={"weights": str(pretrained)}, evaluate_every=6, ema_decay=None)
    message = (
        r"got nan at step 4, .* first in the output of stages\.2\.blocks\.0\.mlp\.act\. .*step_00000002\.pt"
    )
    with pytest.raises(InputError, match=message):
        finetune(config)
    assert last_state(config.run.dir)["step"] == 2
