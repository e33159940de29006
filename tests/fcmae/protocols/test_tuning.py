"""`partial` and `finetune` as columns of `fcmae evaluate`: the numbers of `fcmae finetune` itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from encoder_runs import MODELS, save_run

from fcmae import cli
from fcmae.config import (
    ClassifierConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    PartialConfig,
    RunConfig,
    TuningConfig,
)
from fcmae.config_io import save_config
from fcmae.convert import convert_weights
from fcmae.errors import InputError
from fcmae.evaluation.encoders import load_encoder
from fcmae.evaluation.frozen.score import open_images
from fcmae.evaluation.table import Cell
from fcmae.protocols.evaluate import evaluate
from fcmae.protocols.tuning import score_tuned
from fcmae.training.finetune import finetune

SMALL = TuningConfig(epochs=2, batch_size=6, base_lr=0.02)


def config_for(data: DataConfig, tmp_path: Path, **options) -> EvaluateConfig:
    defaults = {"protocols": "partial,finetune", "finetune": SMALL, "device": "cpu"}
    defaults |= {"partial": PartialConfig(blocks=(0.5, 1.0))}
    return EvaluateConfig(data=data, cache=str(tmp_path / "cache"), **{**defaults, **options})


def cells_of(config: EvaluateConfig, *paths: Path) -> list[Cell]:
    return list(evaluate(config, [str(path) for path in paths], log=lambda _: 0).cells)


def losses(*runs: Path) -> set[float]:
    """On the validation images at the end of each run, which tell runs apart that hit the same images."""
    lines = [json.loads(line) for run in runs for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["loss"] for line in lines if line["event"] == "eval"}


def runs_in(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "cache" / "finetuned").glob("*/log.jsonl"))


@pytest.mark.parametrize("name", MODELS)
def test_every_backbone_is_tuned_as_the_command_does(name: str, folder_data: DataConfig, tmp_path: Path):
    """By the small recipe: 2 epochs of 3 steps, none of them warm-up, no moving average."""
    save_run(tmp_path / "run", MODELS[name], folder_data)
    found = {cell.protocol: cell for cell in cells_of(config_for(folder_data, tmp_path), tmp_path / "run")}
    assert list(found) == ["0.5 blocks", "1 block", "finetune"]
    by_hand = {"0.5 blocks": 0.5, "1 block": 1.0, "finetune": None}
    for column, blocks in by_hand.items():
        config = FinetuneConfig(
            data=folder_data,
            model=ClassifierConfig(
                backbone=MODELS[name].backbone,
                weights=str(tmp_path / "run"),
                drop_path=0.1,
                head_init_scale=1.0,
                num_heads=None if name == "convnextv2" else 2,
                train_last_blocks=blocks,
            ),
            train=FinetuneTrainConfig(
                steps=6, batch_size=6, base_lr=0.02, warmup_steps=0, layer_decay=0.75, evaluate_every=6
            ),
            run=RunConfig(dir=str(tmp_path / column), accelerator="cpu"),
        )
        assert found[column].accuracy == finetune(config)["accuracy"]
        assert (found[column].train_images, found[column].val_images) == (18, 6)
    expected = losses(*(tmp_path / column for column in by_hand))
    # One block is all that a ViT of one block has.
    assert losses(*runs_in(tmp_path)) == expected and len(expected) == (2 if name in ("vit", "msn") else 3)


@pytest.mark.parametrize("name", ["vit", "convmae", "convnextv2"])
def test_classifiers_and_random_weights_are_tuned_too(name: str, folder_data: DataConfig, tmp_path: Path):
    """A fine-tuned run whose sizes are no preset's, and its random twin with the classifier's own norm."""
    save_run(tmp_path / "run", MODELS[name], folder_data)
    config = config_for(folder_data, tmp_path, protocols="finetune")
    cells_of(config, tmp_path / "run")
    (tuned,) = runs_in(tmp_path)
    heads = None if name == "convnextv2" else 2
    cells = cells_of(replace(config, random=True, num_heads=heads), tuned)
    assert [cell.encoder for cell in cells] == [str(tuned), f"random {cells[0].backbone}"]
    assert cells[0].fingerprint != cells[1].fingerprint and cells[1].file == ""
    assert len(runs_in(tmp_path)) == 3 and len(losses(*runs_in(tmp_path))) == 3


@pytest.mark.parametrize("name", ["vit", "convmae"])
def test_files_without_a_config_are_tuned(name: str, folder_data: DataConfig, tmp_path: Path):
    """Of sizes that are no preset's: another format's names, the same weights, the same result."""
    method = save_run(tmp_path / "run", MODELS[name], folder_data)
    ours = {key: tensor for key, tensor in method.state_dict().items() if key.startswith("encoder.")}
    target = "timm" if name == "vit" else "official"
    torch.save({"state_dict": convert_weights(ours, target)[0]}, tmp_path / "other.pth")
    config = config_for(folder_data, tmp_path, protocols="finetune", num_heads=2)
    cells_of(config, tmp_path / "run", tmp_path / "other.pth")
    assert len(runs_in(tmp_path)) == 2 and len(losses(*runs_in(tmp_path))) == 1


def test_finished_runs_are_not_repeated_and_others_are_not_taken_for_them(
    folder_data: DataConfig, tmp_path: Path, monkeypatch
):
    save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    config = config_for(folder_data, tmp_path, protocols="finetune")
    first = cells_of(config, tmp_path / "run")

    class Step(Exception):
        pass

    def step(*args: object, **kwargs: object) -> None:
        raise Step

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert cells_of(config, tmp_path / "run") == first
    moved = replace(folder_data, workers=1, timeout=60.0)
    assert cells_of(replace(config, data=moved), tmp_path / "run") == first
    for other in (
        replace(config, seed=1),
        replace(config, finetune=replace(SMALL, base_lr=0.03)),
        replace(config, data=replace(folder_data, flip=False)),
        replace(config, data=replace(folder_data, val_fraction=0.5)),
        replace(config, protocols="partial"),
    ):
        with pytest.raises(Step):
            cells_of(other, tmp_path / "run")
    save_run(tmp_path / "other", replace(MODELS["convnextv2"], dims=(4, 4, 8, 16)), folder_data)
    with pytest.raises(Step):
        cells_of(config, tmp_path / "other")


def test_a_run_of_other_labels_is_another_run(folder_data: DataConfig, tmp_path: Path):
    """Of an array, the labels lie in a file of their own: the same images may have others tomorrow."""
    save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    config = config_for(folder_data, tmp_path, protocols="finetune")
    images, encoder = open_images(config), load_encoder(tmp_path / "run", in_chans=3)
    others = replace(images, train=replace(images.train, labels=images.train.labels.roll(1)))
    for each, runs in ((images, 1), (others, 2)):
        list(score_tuned("finetune", config, encoder, each, device=torch.device("cpu"), log=lambda _: 0))
        assert len(runs_in(tmp_path)) == runs


def test_a_recipe_is_followed_with_as_many_images_a_step(folder_data: DataConfig, tmp_path: Path):
    """Its `model` and `train`, on one device; its own images, backbone and weights play no part."""
    save_run(tmp_path / "run", MODELS["vit"], folder_data)
    recipe = FinetuneConfig(
        data=replace(folder_data, root="absent", mean=(0.1, 0.2, 0.3)),
        model=ClassifierConfig(backbone="vit_huge_patch14", weights="absent", global_pool="token"),
        train=FinetuneTrainConfig(steps=3, batch_size=2, ema_decay=0.9, layer_decay=0.5, seed=7),
        run=RunConfig(dir="absent", devices=3),
    )
    save_config(recipe, tmp_path / "recipe.yaml")
    tuning = TuningConfig(recipe=str(tmp_path / "recipe.yaml"))
    config = config_for(folder_data, tmp_path, protocols="finetune", finetune=tuning)
    (cell,) = cells_of(config, tmp_path / "run")
    for part in ("recipe.yaml, 3 steps of 6 random crops", "layer decay 0.5", "seed 7"):
        assert part in cell.settings
    (run,) = runs_in(tmp_path)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["train"]["batch_size"], saved["train"]["accumulate"]) == (2, 3)
    assert saved["model"]["global_pool"] == "token" and saved["data"]["root"] == folder_data.root
    assert not Path("absent").exists()


def test_all_protocols_in_one_table(folder_data: DataConfig, tmp_path: Path, capsys):
    save_run(tmp_path / "run", MODELS["convmae"], folder_data)
    argv = [
        "evaluate",
        str(tmp_path / "run"),
        "--protocols=probe,knn,lowshot,partial,finetune",
        "--partial.blocks=[0,2.5]",
        "--finetune.epochs=1",
        "--finetune.batch_size=6",
        "--lowshot.per_class=[1]",
        "--lowshot.percent=null",
        "--shuffled=true",
        "--data.source=folder",
        f"--data.root={folder_data.root}",
        "--data.val_fraction=0.25",
        "--data.image_size=32",
        "--data.workers=0",
        f"--cache={tmp_path / 'cache'}",
        "--device=cpu",
    ]
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    (header,) = (line for line in lines if line.startswith("encoder "))
    columns = ["probe", "k-NN", "1 a class", "0 blocks", "2.5 blocks", "finetune"]
    places = [header.index(f" {column}") for column in columns]
    assert places == sorted(places)
    rows = [line.split() for line in lines if line.startswith(f"{tmp_path / 'run'} ")]
    assert len(rows) == 1
    (control,) = (line for line in lines if "shuffled labels" in line)
    assert control.split()[-3:] == ["-", "-", "-"]  # a frozen encoder's control
    assert any(line.startswith("0 blocks: no block and the head trained") for line in lines)
    assert any(line.startswith("2.5 blocks: the last 2.5 blocks and the head trained") for line in lines)
    assert any(line.startswith("finetune: the whole encoder and the head trained") for line in lines)
    assert not any(line.startswith("train:") for line in lines)  # what a run prints is in its folder
    assert all("train:" in (run / "output.txt").read_text() for run in runs_in(tmp_path))


def test_tuning_alone_extracts_no_features(folder_data: DataConfig, tmp_path: Path):
    save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    cells_of(config_for(folder_data, tmp_path, protocols="finetune"), tmp_path / "run")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["finetuned"]


def test_more_blocks_than_there_are_are_refused_before_anything_is_measured(
    folder_data: DataConfig, tmp_path: Path
):
    save_run(tmp_path / "run", MODELS["convmae"], folder_data)
    partial = PartialConfig(blocks=(1.0, 3.5))
    config = config_for(folder_data, tmp_path, protocols="knn,partial", partial=partial)
    with pytest.raises(InputError, match=r"partial.blocks: expected at most the 3 blocks of .*run, got 3.5"):
        cells_of(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()
