"""`fcmae detect` as users run it: training, going on, measuring and predicting."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import rectangle, write_coco
from faster_coco_eval import COCO
from PIL import Image

from fcmae.cli import main
from fcmae.config import (
    DetectConfig,
    DetectDataConfig,
    DetectorConfig,
    DetectTestConfig,
    DownstreamTrainConfig,
    RunConfig,
)
from fcmae.downstream.detection.train import train_detector
from fcmae.downstream.samples import write_samples
from fcmae.errors import InputError
from fcmae.training.engine.checkpoints import newest_checkpoint


def small_config(run: Path, *, steps: int = 4, data: dict[str, Any] | None = None) -> DetectConfig:
    """The samples at 64 pixels, with every random draw of training on."""
    return DetectConfig(
        data=DetectDataConfig(**{"image_size": 64, "workers": 0, **(data or {})}),
        model=DetectorConfig(
            backbone="convnextv2_atto", fpn_dim=8, head_dim=16, box_samples=16, drop_path=0.2
        ),
        train=DownstreamTrainConfig(
            steps=steps,
            batch_size=2,
            base_lr=0.05,
            warmup_steps=1,
            layer_decay=0.9,
            evaluate_every=2,
            checkpoint_every=2,
            log_every=1,
        ),
        test=DetectTestConfig(short_sides=(64,), long_side=128),
        run=RunConfig(dir=str(run), accelerator="cpu"),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_detector(small_config(folder))
    return folder


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in found if line["event"] == event]


def last(run: Path) -> dict[str, Any]:
    found = newest_checkpoint(run)
    assert found is not None
    return found[1]


def test_a_resumed_run_is_the_uninterrupted_one(run: Path, tmp_path: Path) -> None:
    middle = run / "checkpoints" / "step_00000002.pt"
    metrics = train_detector(replace(small_config(tmp_path / "resumed"), resume=str(middle)))
    whole, resumed = last(run), last(tmp_path / "resumed")
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    assert metrics == whole["metrics"] == resumed["metrics"]
    losses = ("loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_mask")
    ours, theirs = lines(tmp_path / "resumed", "train"), lines(run, "train")[2:]
    assert [[line[name] for name in losses] for line in ours] == [
        [line[name] for name in losses] for line in theirs
    ]


def test_a_run_with_other_categories_is_not_gone_on_from(run: Path, tmp_path: Path) -> None:
    path = write_coco(tmp_path, [rectangle(1, 2, 3, 4)])
    other = {"source": "coco", "root": str(tmp_path), "annotations": str(path), "val_fraction": 0.0}
    config = replace(
        small_config(tmp_path / "run", data=other), resume=str(run / "checkpoints" / "newest.pt")
    )
    with pytest.raises(InputError, match=r"resume: expected the 3 categories of .* got 2"):
        train_detector(config)


def test_the_lower_layers_learn_slower() -> None:
    from fcmae.downstream.detection.train import build_detector

    detector = build_detector(small_config(Path("unused")), None, classes=3)
    scale = detector.layer_scale(0.9)
    names = dict(detector.named_parameters())
    assert {scale(name) for name in names if not name.startswith("pyramid.encoder")} == {1.0}
    stem, block = "pyramid.encoder.stem.0.weight", "pyramid.encoder.stages.3.blocks.1.mlp.fc1.weight"
    assert {stem, block} <= names.keys() and scale(stem) < scale(block) < 1.0


def test_broken_annotations_are_counted_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instances = [rectangle(5, 5, 30, 20), rectangle(1, 2, 0, 4, id=2)]
    path = write_coco(tmp_path, instances)
    data = {"source": "coco", "root": str(tmp_path), "annotations": str(path), "val_fraction": 0.0}
    with pytest.raises(InputError, match="expected a box with an area"):
        train_detector(small_config(tmp_path / "refused", steps=1, data=data))
    train_detector(small_config(tmp_path / "skipped", steps=1, data={**data, "broken": "skip"}))
    assert capsys.readouterr().out.count("left out 1 boxes without area") == 1
    (event,) = lines(tmp_path / "skipped", "left_out")
    assert len(event["lines"]) == 1 and event["lines"][0].startswith("left out 1 boxes without area")


def test_images_of_twelve_channels_and_sixteen_bits_are_trained_on(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [rectangle(5, 5, 30, 20)])
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "0.npy"
    path.write_text(json.dumps(content))
    pixels = np.random.default_rng(0).integers(0, 65536, (12, 40, 60), dtype=np.uint16)
    np.save(tmp_path / "0.npy", pixels)
    data = {"source": "coco", "root": str(tmp_path), "annotations": str(path), "in_chans": 12}
    run = tmp_path / "run"
    train_detector(small_config(run, steps=1, data={**data, "val_fraction": 0.0}))
    assert (
        main(["detect", "predict", str(run), str(tmp_path / "0.npy"), f"--out={tmp_path}", "--overlays"]) == 0
    )
    with Image.open(tmp_path / "overlays" / "0.png") as overlay:
        assert overlay.size == (60, 40)


def test_eval_gives_the_runs_own_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "eval", str(run), f"--out={tmp_path / 'x' / 'eval.json'}"]) == 0
    written = json.loads((tmp_path / "x" / "eval.json").read_text())
    metrics = last(run)["metrics"]
    assert {name: written[name] for name in metrics} == metrics
    assert "mask_ap/disc" in written and "mask_ap/disc" in capsys.readouterr().out


def test_predictions_are_cocos_results(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(tmp_path / "samples", 2)
    images = tmp_path / "samples" / "images"
    (images / "broken.png").write_bytes(b"no picture")
    options = ["--overlays", "--test.score_threshold=0.0", "--test.overlay_score=0.0"]
    assert main(["detect", "predict", str(run), str(images), f"--out={tmp_path / 'out'}", *options]) == 0
    assert "skipped" in capsys.readouterr().out
    listed = COCO(str(tmp_path / "out" / "images.json"))
    results = listed.loadRes(str(tmp_path / "out" / "predictions.json"))
    assert len(listed.getImgIds()) == 2 and len(results.getAnnIds()) == 200
    for image in listed.loadImgs(listed.getImgIds()):
        for instance in results.loadAnns(results.getAnnIds([image["id"]])):
            assert results.annToMask(instance).shape == (image["height"], image["width"])
            left, top, width, height = instance["bbox"]
            assert min(left, top) >= 0
            assert left + width <= image["width"] + 0.02 and top + height <= image["height"] + 0.02
            assert instance["category_id"] in (1, 2, 3) and 0 <= instance["score"] <= 1
        drawn = np.asarray(Image.open(tmp_path / "out" / "overlays" / f"{Path(image['file_name']).stem}.png"))
        pixels = np.asarray(Image.open(image["file_name"]))
        assert drawn.shape == pixels.shape and (drawn != pixels).any()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evl"], "detect: expected train, eval or predict, got evl"),
        (["eval", "absent"], "absent"),
        (["eval", "{run}", "--model.fpn_dim=9"], "model.fpn_dim = 8 (got 9)"),
        (["eval", "{run}", "--test.flp=true"], "nearest is test.flip"),
        (
            ["predict", "{run}", "absent", "--out=x"],
            "IMAGES: expected a file or a folder, got nothing at absent",
        ),
        (["predict", "{run}", "{run}"], "--out"),
        (["train", "--data.source=coco"], "data.root: expected a path"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", *(word.replace("{run}", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error and "\n" not in error


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("fcmae.downstream", "faster_coco_eval"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert main(["detect", "eval", "absent"]) == 2
    assert "Run: pip install 'fcmae[downstream]'." in capsys.readouterr().err
