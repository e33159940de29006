"""Data settings of an evaluation: the checkpoint's unless given, and what differs is said in a line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_runs import MODELS, save_run

from fcmae import cli
from fcmae.config import ClassifierConfig, DataConfig, FinetuneConfig
from fcmae.config_io import to_dict
from fcmae.evaluation.settings import data_presets, told_otherwise
from fcmae.training.engine.checkpoints import save_checkpoint


@pytest.fixture
def scans(tmp_path: Path) -> DataConfig:
    """40 images of two channels at the end of their axes, as one array, told apart by their brightness."""
    labels = np.arange(40) % 2
    noise = np.random.default_rng(0).integers(0, 99, (40, 36, 30, 2))
    np.save(tmp_path / "scans.npy", (noise + 60 * labels[:, None, None, None]).astype(np.uint8))
    np.save(tmp_path / "labels.npy", labels)
    return DataConfig(
        source="arrays",
        root=str(tmp_path / "scans.npy"),
        labels=str(tmp_path / "labels.npy"),
        channel_axis="last",
        val_fraction=0.25,
        image_size=(32, 24),
        in_chans=2,
        mean=(0.3, 0.4),
        std=(0.2, 0.1),
        flip=False,
        workers=0,
    )


def where(data: DataConfig, tmp_path: Path) -> list[str]:
    """Options that say where images lie, and none that says how they become tensors."""
    return [
        f"--data.root={data.root}",
        f"--data.labels={data.labels}",
        "--data.val_fraction=0.25",
        "--data.workers=0",
        f"--cache={tmp_path / 'cache'}",
        f"--json={tmp_path / 'table.json'}",
    ]


def test_nothing_but_the_place_has_to_be_given(scans: DataConfig, tmp_path: Path, capsys):
    """The images are the same tensors as those that all options describe: the features are found again."""
    save_run(tmp_path / "run", MODELS["convnextv2"], scans)
    run = str(tmp_path / "run")
    given = ["--data.source=arrays", "--data.channel_axis=last", "--data.image_size=[32,24]"]
    given += ["--data.in_chans=2", "--data.mean=[0.3,0.4]", "--data.std=[0.2,0.1]", "--data.flip=false"]
    tables = []
    for options in (given, []):
        assert cli.main(["knn", run, *options, *where(scans, tmp_path)]) == 0
        tables.append(json.loads((tmp_path / "table.json").read_text()))
        assert "trained with" not in capsys.readouterr().out
    assert tables[0] == tables[1] and "arrays at 32 x 24" in tables[0]["data"]
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2  # train and val, once


def test_what_is_given_wins_and_is_said(scans: DataConfig, tmp_path: Path, capsys):
    save_run(tmp_path / "run", MODELS["convnextv2"], scans)
    run = str(tmp_path / "run")
    (tmp_path / "file.yaml").write_text("data:\n  mean: [0.1, 0.4]\n  image_size: 16\n")
    file = ["--config", str(tmp_path / "file.yaml"), "--data.image_size=24"]
    assert cli.main(["knn", run, *file, *where(scans, tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "trained with" in line]
    assert lines == [
        f"{run}: data.image_size=[24, 24], trained with [32, 24]; "
        "data.mean=[0.1, 0.4], trained with [0.3, 0.4]"
    ]
    assert "at 24 x 24 pixels" in json.loads((tmp_path / "table.json").read_text())["data"]


def test_the_first_checkpoint_decides_and_the_others_are_told(scans: DataConfig, tmp_path: Path, capsys):
    save_run(tmp_path / "a", MODELS["convnextv2"], scans)
    save_run(tmp_path / "b", MODELS["convnextv2"], replace(scans, image_size=64, std=(0.5, 0.1)))
    runs = [str(tmp_path / name) for name in "ab"]
    assert cli.main(["knn", *runs, *where(scans, tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "trained with" in line]
    assert lines == [
        f"{runs[1]}: data.image_size=[32, 24], trained with [64, 64]; "
        "data.std=[0.2, 0.1], trained with [0.5, 0.1]"
    ]
    assert cli.main(["knn", *reversed(runs), *where(scans, tmp_path)]) == 0
    assert "at 64 x 64 pixels" in json.loads((tmp_path / "table.json").read_text())["data"]


def test_diversity_takes_them_too(scans: DataConfig, tmp_path: Path, capsys):
    save_run(tmp_path / "run", MODELS["convnextv2"], scans)
    options = [f"--data.root={scans.root}", "--data.workers=0", f"--out={tmp_path / 'out'}", "--images=4"]
    written = []
    for further in ([], ["--data.std=[0.4,0.1]"]):
        assert cli.main(["diversity", str(tmp_path / "run"), *options, *further]) == 0
        said = capsys.readouterr().out
        assert ("data.std=[0.4, 0.1], trained with [0.2, 0.1]" in said) == bool(further)
        written.append(json.loads((tmp_path / "out" / "diversity.json").read_text()))
    assert "at 32 x 24 pixels" in written[0]["images"]
    assert written[0]["networks"] != written[1]["networks"]


def test_fine_tuned_runs_say_it_and_weights_of_others_their_channels(scans: DataConfig, tmp_path: Path):
    encoder = save_run(tmp_path / "run", MODELS["convnextv2"], scans).encoder
    state = {"kind": "finetune", "config": to_dict(FinetuneConfig(data=scans, model=ClassifierConfig()))}
    weights = {"model": {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}}
    save_checkpoint(tmp_path / "tuned" / "checkpoints", {**state, **weights}, step=1, keep=1)
    torch.save(weights, tmp_path / "bare.pth")
    paths = [str(tmp_path / name) for name in ("bare.pth", "tuned", "run")]
    presets = data_presets(["timm:resnet18", *paths])
    assert presets["data.mean"] == (0.3, 0.4) and presets["data.image_size"] == (32, 24)
    assert not {"data.root", "data.labels", "data.val_fraction", "data.workers"} & presets.keys()
    assert data_presets(["timm:resnet18", paths[0]]) == {"data.in_chans": 2}
    assert data_presets(["timm:resnet18"]) == data_presets([]) == {}


def test_the_same_by_another_name_is_no_difference():
    colour = DataConfig(source="digits", image_size=32)
    spelt_out = replace(colour, image_size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for saved, now in ((colour, spelt_out), (spelt_out, colour)):
        assert told_otherwise(to_dict(saved), now) is None
    assert told_otherwise({}, colour) is None  # weights of others say nothing
    assert told_otherwise(to_dict(colour), replace(spelt_out, mean=(0.5, 0.5, 0.5))) == (
        "data.mean=[0.5, 0.5, 0.5], trained with [0.485, 0.456, 0.406]"
    )
