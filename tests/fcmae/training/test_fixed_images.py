"""Looks at a run: fixed images and masks, true pixels, and a run that does not know of them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import (
    ConvMAEConfig,
    DataConfig,
    FCMAEConfig,
    MAEConfig,
    ModelConfig,
    MSNConfig,
    PretrainConfig,
    PretrainTrainConfig,
    RunConfig,
)
from fcmae.config.diversity import EXPANSION
from fcmae.convert.files import read_newest_checkpoint
from fcmae.data import denormalise, eval_transform, open_dataset
from fcmae.errors import InputError
from fcmae.evaluation.diversity import measure_diversity
from fcmae.methods import from_config
from fcmae.models import create_backbone
from fcmae.report.reconstruction import MASKED_GREY, displayable, rows_of
from fcmae.report.samples import load_method
from fcmae.training.engine.guards import COLLAPSE_BOUNDS, CollapseGuard
from fcmae.training.engine.logs import RunLog
from fcmae.training.pretrain import pretrain
from fcmae.training.watch import IMAGES, watched_layers

FCMAE = FCMAEConfig(
    backbone="convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), decoder_dim=16, drop_path=0.2
)
MODELS: dict[str, ModelConfig] = {
    "fcmae": FCMAE,
    "convmae": ConvMAEConfig(
        backbone="convmae_small",
        depths=(1, 1, 1),
        dims=(8, 8, 16),
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        num_heads=2,
    ),
    "mae": MAEConfig(
        backbone="vit_tiny_patch16",
        depths=(2,),
        dims=(16,),
        num_heads=2,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
    ),
    "msn": MSNConfig(
        backbone="convnextv2_atto",
        depths=(1, 1, 1, 1),
        dims=(8, 8, 16, 16),
        mask_ratio=0.3,
        focal_views=1,
        focal_size=32,
        prototypes=16,
        hidden_dim=16,
        output_dim=8,
    ),
}


def sheet_of(run_dir: Path, step: int) -> list[Tensor]:
    """The rows original, visible and reconstructed of one look, uint8 [IMAGES, H, W, 3]."""
    with Image.open(run_dir / "reconstructions" / f"step_{step:08d}.png") as image:
        return rows_of(torch.from_numpy(np.array(image)), rows=3, count=IMAGES)


def fixed_images(data: DataConfig, names: list[str]) -> Tensor:
    """The digits of these names, normalised, from the run's source and nothing of the watch."""
    dataset, transform = open_dataset(data, split="all", labelled=False), eval_transform(data)
    numbers = [int(re.findall(r"\d+", name)[0]) for name in names]
    return torch.stack([transform(dataset.load(number)) for number in numbers])


@pytest.mark.parametrize("name", MODELS)
def test_looking_changes_nothing_that_is_trained(pretrain_config, name: str):
    looks = {"diversity_every": 2, "reconstruct_every": 0 if name == "msn" else 3}
    runs = [
        pretrain(replace(pretrain_config(f"{name}{index}", **options), model=MODELS[name]))
        for index, options in enumerate(({}, looks))
    ]
    assert_same_tensors(*(last_state(run)["model"] for run in runs))
    assert_same_tensors(*(last_state(run)["optimizer"] for run in runs))
    curves = [[(line["step"], line["loss"]) for line in events(run, "train")] for run in runs]
    assert curves[0] == curves[1] and len(curves[0]) == 6
    assert [line["step"] for line in events(runs[1], "diversity")] == [2, 4, 6]
    assert [line["step"] for line in events(runs[1], "reconstruction")] == ([] if name == "msn" else [3, 6])
    assert not events(runs[0], "diversity") and not (runs[0] / "reconstructions").exists()


@pytest.mark.parametrize("name", ["fcmae", "convmae", "mae"])
def test_visible_pixels_are_the_images_own_and_hidden_ones_are_painted(pretrain_config, name: str):
    config = replace(pretrain_config(name, reconstruct_every=3), model=MODELS[name])
    run = pretrain(config)
    (line, _) = events(run, "reconstruction")
    original, visible, painted = sheet_of(run, 3)
    images = fixed_images(config.data, line["names"])
    assert torch.equal(original, displayable(denormalise(images, config.data)))
    # Grey hides whole cells, as many as the method's mask ratio.
    side = from_config(config.model, config.data).cell_size
    cells = visible.unfold(1, side, side).unfold(2, side, side)
    hidden = (cells == round(MASKED_GREY * 255)).flatten(3).all(-1)
    counts = hidden.sum(dim=(1, 2)).unique()
    assert len(counts) == 1 and 0.5 < counts.item() / hidden[0].numel() < 0.9
    seen = ~hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)
    assert torch.equal(visible[seen], original[seen]) and torch.equal(painted[seen], original[seen])
    assert (painted[~seen] != original[~seen]).float().mean() > 0.5


def test_images_and_masks_are_those_of_the_seed(pretrain_config):
    first = pretrain(pretrain_config("first", reconstruct_every=3))
    originals, masks, painted = zip(sheet_of(first, 3), sheet_of(first, 6), strict=True)
    assert torch.equal(*originals) and torch.equal(*masks) and not torch.equal(*painted)
    other = pretrain(pretrain_config("other", reconstruct_every=6, seed=1))
    assert not torch.equal(sheet_of(other, 6)[0], originals[0])


def test_a_resumed_run_goes_on_with_the_same_looks(pretrain_config, monkeypatch):
    looks = {"reconstruct_every": 3, "diversity_every": 1}
    whole = pretrain(pretrain_config("whole", **looks))
    config = pretrain_config("parts", **looks)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interruption):
            pretrain(config)
    parts = pretrain(config)
    for step in (3, 6):
        assert all(map(torch.equal, sheet_of(parts, step), sheet_of(whole, step)))
    assert events(parts, "diversity") == events(whole, "diversity")
    assert events(parts, "reconstruction") == events(whole, "reconstruction")
    board = EventAccumulator(str(parts / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("diversity/feature_distance")] == [1, 2, 3, 4, 5, 6]
    assert board.Images("reconstruction")[-1].step == 6


def test_two_processes_look_once(pretrain_config):
    config = pretrain_config("two", batch_size=2, reconstruct_every=3, diversity_every=3)
    alone = pretrain(pretrain_config("one", reconstruct_every=3, diversity_every=3))
    two = run_processes(replace(config, run=replace(config.run, devices=2, timeout=60.0)), 2)
    assert [line["step"] for line in events(two, "reconstruction")] == [3, 6]
    assert '"diversity"' not in (two / "log-rank1.jsonl").read_text()
    assert all(map(torch.equal, sheet_of(two, 6)[:2], sheet_of(alone, 6)[:2]))


def test_the_distance_is_that_of_the_saved_weights(pretrain_config):
    run = pretrain(pretrain_config(diversity_every=6, reconstruct_every=6))
    (line,) = events(run, "diversity")
    found = read_newest_checkpoint(run)
    assert found is not None
    method, config = load_method(*found[:2])
    layers = watched_layers(method.encoder)
    assert layers == [f"stages.{stage}.blocks.0.mlp.fc2" for stage in range(4)]
    assert line.keys() == {"event", "step", "feature_distance", *layers}
    (pictures,) = events(run, "reconstruction")
    images = fixed_images(config.data, pictures["names"])
    layers_now = measure_diversity(method.encoder, [images], modules=EXPANSION)
    expected = {layer.module: layer.distance for layer in layers_now}
    assert {layer: line[layer] for layer in layers} == pytest.approx(expected, rel=1e-6)
    assert line["feature_distance"] == min(line[layer] for layer in layers)


@pytest.mark.parametrize(
    ("backbone", "depths", "expected"),
    [
        ("vit_tiny_patch16", (8,), [1, 3, 5, 7]),
        ("vit_tiny_patch16", (3,), [0, 1, 2]),
    ],
)
def test_a_few_layers_and_the_last_of_them(backbone: str, depths: tuple[int, ...], expected: list[int]):
    encoder = create_backbone(backbone, depths=depths, dims=(16,), num_heads=2)
    assert watched_layers(encoder) == [f"blocks.{block}.mlp.fc2" for block in expected]


def test_collapsed_features_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    low, high = COLLAPSE_BOUNDS["feature_distance"] / 2, 0.2
    with RunLog(tmp_path, start=0, steps=9) as log:
        guard = CollapseGuard(log, lines=3)
        for step, value in enumerate([low, low, high, low, low, low, low]):
            guard.note({"feature_distance": value}, step=step)
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (line["event"], line["of"], line["step"]) == ("collapse", "feature_distance", 5)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "collapse at step 5" in said and "keep GRN" in said


def test_a_run_whose_channels_are_all_alike_is_warned_of(pretrain_config, monkeypatch, capsys):
    """The network itself, not the numbers: every layer's second linear reads one map, many times."""
    hidden = "fcmae.models.blocks.GatedMlp.hidden"
    monkeypatch.setattr(hidden, lambda self, x: x.mean(dim=-1, keepdim=True).expand(*x.shape[:-1], 8))
    run = pretrain(pretrain_config(diversity_every=1))
    assert events(run, "diversity")[0]["feature_distance"] < 1e-6
    assert [line["step"] for line in events(run, "collapse")] == [3]
    assert "collapse at step 3: feature_distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "strategy", "looks", "part"),
    [
        ("msn", "auto", {"reconstruct_every": 5}, "expected 0 for msn, which paints no pixels, got 5"),
        ("fcmae", "fsdp", {"reconstruct_every": 5}, r"expected 0 with run\.strategy=fsdp.*got 5"),
        ("fcmae", "fsdp", {"diversity_every": 7}, r"expected 0 with run\.strategy=fsdp.*got 7"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(model: str, strategy: Any, looks: dict[str, int], part: str):
    with pytest.raises(InputError, match=part):
        PretrainConfig(
            model=MODELS[model], run=RunConfig(strategy=strategy), train=PretrainTrainConfig(**looks)
        )


def test_looks_of_a_negative_number_of_steps_are_refused():
    with pytest.raises(InputError, match=r"train\.diversity_every: expected 0 or more, got -1\."):
        PretrainTrainConfig(diversity_every=-1)


def test_an_unreadable_image_is_left_out_and_said(pretrain_config, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no image")
    data = {"source": "folder", "root": str(folder), "max_bad_images": 4}
    run = pretrain(pretrain_config(data=data, reconstruct_every=6))
    (line,) = events(run, "reconstruction")
    assert [Path(name).name for name in line["names"]] == ["0.png", "1.png", "3.png"]
    assert f"not watched: {folder / '2.png'}" in capsys.readouterr().out
