"""Fine-tuning after fine-tuning: other classes, larger images, all but the last layer carried on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from training_runs import events, last_state

from fcmae.config import (
    ClassifierConfig,
    ConvMAEConfig,
    FCMAEConfig,
    MAEConfig,
    ModelConfig,
    PretrainConfig,
)
from fcmae.models.position import sincos_positions
from fcmae.training.classifier import build_classifier
from fcmae.training.finetune import finetune
from fcmae.training.pretrain import pretrain

TRANSFORMER: dict[str, Any] = {"num_heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
MODELS: dict[str, ModelConfig] = {
    "convnextv2": FCMAEConfig(
        backbone="convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), decoder_dim=16
    ),
    "vit": MAEConfig(backbone="vit_tiny_patch8", depths=(2,), dims=(16,), **TRANSFORMER),
    "convmae": ConvMAEConfig(backbone="convmae_small", depths=(1, 1, 1), dims=(8, 8, 16), **TRANSFORMER),
}
HEAD = {"convnextv2": "head.fc.", "vit": "head.", "convmae": "head."}


@pytest.fixture
def chain(pretrain_config, finetune_config) -> Callable[[str], tuple[ClassifierConfig, Path]]:
    """Name -> (the classifier of the second fine-tuning, the run of the first: 10 digits at 32 pixels)."""

    def make(name: str) -> tuple[ClassifierConfig, Path]:
        config: PretrainConfig = replace(pretrain_config("pretrained", steps=1), model=MODELS[name])
        heads = None if name == "convnextv2" else 2
        model = {"backbone": MODELS[name].backbone, "num_heads": heads, "weights": str(pretrain(config))}
        first = finetune_config("first", model=model, data={"image_size": 32}, ema_decay=None)
        finetune(first)
        return replace(first.model, weights=first.run.dir, head_init_scale=0.001), Path(first.run.dir)

    return make


@pytest.fixture
def three_classes(tmp_path: Path) -> str:
    """A folder of coloured noise: 4 images of each of 3 classes."""
    for label in range(3):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(10 * label + number).integers(0, 200, (70, 70, 3))
            noise[..., label] += 55
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return str(tmp_path / "images")


@pytest.mark.parametrize("name", MODELS)
def test_other_classes_get_a_new_head_and_everything_else_is_carried_on(chain, name: str):
    model, first = chain(name)
    before = last_state(first)["model"]
    lines: list[str] = []
    torch.manual_seed(0)
    classifier, _ = build_classifier(
        model, str(first), num_classes=300, in_chans=3, image_size=(32, 32), log=lines.append
    )
    after, head = classifier.state_dict(), HEAD[name]
    assert after.keys() == before.keys()
    for key in after.keys() - {f"{head}weight", f"{head}bias"}:
        assert torch.equal(after[key], before[key]), key
    norms = [key for key in before if "head.norm" in key or "fc_norm" in key]
    assert norms and all(before[key].unique().numel() > 1 for key in norms)  # trained, so equality says much
    assert after[f"{head}weight"].shape == (300, 16) and before[f"{head}weight"].shape == (10, 16)
    assert after[f"{head}weight"].std().item() == pytest.approx(2e-5, rel=0.05)
    assert not after[f"{head}bias"].any()
    assert lines == [
        "model.weights: a new head for 300 classes in the place of that for 10; everything else is loaded"
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_second_run_says_so_once_and_goes_on_from_the_first(
    chain, finetune_config, three_classes: str, name: str, capsys
):
    model, first = chain(name)
    data = {"source": "folder", "root": three_classes, "val_fraction": 0.25, "image_size": 64}
    data["labels_per_class"] = None
    config = finetune_config("second", model=vars(model), data=data, steps=2, layer_decay=0.65)
    capsys.readouterr()
    metrics = finetune(config)
    said = capsys.readouterr().out
    assert said.count("a new head for 3 classes in the place of that for 10") == 1
    assert ("position embeddings of 4 x 4 patches for 8 x 8" in said) == (name == "vit")
    assert 0 <= metrics["ema_accuracy"] <= 1 and len(events(config.run.dir, "train")) == 2
    state = last_state(config.run.dir)
    assert state["classes"] == ["class0", "class1", "class2"]
    # Two steps of such a rate move no weight far: they are the first run's, not new ones.
    before = last_state(first)["model"]
    moved = {
        key: (tensor - before[key]).abs().max().item()
        for key, tensor in state["model"].items()
        if not key.startswith(HEAD[name]) and tensor.shape == before[key].shape
    }
    assert len(moved) >= len(before) - 3 and max(moved.values()) < 2 * 0.05 * 4 / 256 * 1.01
    assert finetune(config) == metrics
    assert "a new head" not in capsys.readouterr().out  # a finished run's weights are its own


def test_convnextv2_takes_other_sizes_as_it_is(chain):
    model, first = chain("convnextv2")
    small, large = (
        build_classifier(model, str(first), num_classes=3, in_chans=3, image_size=size, log=lambda _: 0)[0]
        for size in ((32, 32), (64, 96))
    )
    large.load_state_dict(small.state_dict())
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(small.eval()(image), large.eval()(image))
    assert large(image).shape == (1, 3)


def _moved_positions(first: Path) -> dict[str, Any]:
    """The checkpoint of a run whose positions have been trained for long."""
    state = last_state(first)
    positions = state["model"]["pos_embed"]
    state["model"]["pos_embed"] = positions + 0.3 * torch.randn(positions.shape)
    return state


def _resampled(patches: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    maps = patches.unflatten(1, own).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, grid, mode="bicubic", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def test_a_vits_trained_positions_are_interpolated(chain):
    model, first = chain("vit")
    state, lines = _moved_positions(first), []
    classifier, _ = build_classifier(
        model, state, num_classes=3, in_chans=3, image_size=(64, 64), log=lines.append
    )
    before, after = state["model"]["pos_embed"], classifier.state_dict()["pos_embed"]
    assert torch.equal(after[:, :1], before[:, :1])
    torch.testing.assert_close(after[:, 1:], _resampled(before[:, 1:], (4, 4), (8, 8)))
    assert lines[0] == (
        "model.weights: position embeddings of 4 x 4 patches for 8 x 8: learnt ones, interpolated"
    )
    assert classifier(torch.randn(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize("trained", [False, True])
def test_convmaes_positions_fit_larger_images(chain, trained: bool):
    """Those of 224 pixels that every file holds: fixed ones are computed anew, learnt ones interpolated."""
    model, first = chain("convmae")
    state = _moved_positions(first) if trained else last_state(first)
    classifier, _ = build_classifier(model, state, num_classes=3, in_chans=3, image_size=(64, 64))
    own = state["model"]["pos_embed"]
    assert own.shape == (1, 196, 16)
    wanted = _resampled(own, (14, 14), (4, 4)) if trained else sincos_positions((4, 4), 16)
    seen: list[Any] = []
    stages = [classifier.get_submodule(name) for name in ("patch_embed3", "blocks3")]
    stages[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    stages[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    classifier.eval()(torch.randn(2, 3, 64, 64))
    features, tokens = seen
    embedded = classifier.get_submodule("patch_embed4")(features).flatten(1, 2)
    torch.testing.assert_close(tokens, embedded + wanted)
