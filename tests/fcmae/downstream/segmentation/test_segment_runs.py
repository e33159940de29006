"""The three commands: a resumed run is the uninterrupted one, what is measured is what is predicted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.cli import main
from fcmae.config_io import save_config
from fcmae.downstream.segmentation.command import load_segmenter
from fcmae.downstream.segmentation.metrics import scores
from fcmae.downstream.segmentation.train import train_segmenter
from fcmae.errors import InputError
from fcmae.training.engine.checkpoints import newest_checkpoint

pytestmark = pytest.mark.usefixtures("as_users_run")


def last_state(folder: str | Path) -> dict[str, Any]:
    found = newest_checkpoint(folder)
    assert found is not None
    return found[1]


def logged(folder: str | Path, event: str) -> list[dict[str, Any]]:
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    return error[-1]


class Interruption(Exception):
    pass


def test_interrupted_and_resumed_is_the_uninterrupted_run(
    segment_config: Callable[..., Any], backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segment_config("whole", backbone=backbone)
    metrics = train_segmenter(whole)
    parts = segment_config("parts", backbone=backbone)
    step, done = torch.optim.AdamW.step, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        if len(done) == 3:
            raise Interruption
        done.append(1)
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", failing)
        with pytest.raises(Interruption):
            train_segmenter(parts)
    Path(parts.model.weights).unlink()  # the pretrained weights are not needed any more
    assert train_segmenter(parts) == metrics
    states = [last_state(config.run.dir)["model"] for config in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert [line["step"] for line in logged(parts.run.dir, "eval")] == [2, 4]
    assert metrics["best_mIoU"] == max(line["mIoU"] for line in logged(parts.run.dir, "eval"))
    assert metrics.keys() == {"mIoU", "aAcc", "mAcc", "best_mIoU", "best_mIoU_step"}


def test_evaluation_is_of_what_is_predicted(
    segment_config: Callable[..., Any], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"val_fraction": 0.0, "reduce_zero_label": True, "num_classes": 3}
    config = segment_config(data=data)
    metrics = train_segmenter(config)
    out = tmp_path / "numbers/eval.json"
    assert main(["segment", "eval", config.run.dir, "--out", str(out)]) == 0
    printed, numbers = capsys.readouterr().out, json.loads(out.read_text())
    assert f"mIoU {metrics['mIoU']:.4f}" in printed and numbers["mIoU"] == metrics["mIoU"]
    assert numbers["images"] == 6 and numbers["step"] == 4

    predictions = tmp_path / "predicted"
    arguments = ["segment", "predict", config.run.dir, str(photographs / "images"), "--out", str(predictions)]
    assert main([*arguments, "--overlays"]) == 0
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for path in sorted((photographs / "labels").glob("*.png")):
        predicted = np.asarray(Image.open(predictions / path.name))
        annotated = np.asarray(Image.open(path))
        assert predicted.dtype == np.uint8 and predicted.shape == annotated.shape
        for row in range(3):
            for column in range(3):
                both = (annotated == row + 1) & (predicted == column + 1)
                counts[row, column] += int(both.sum())
        overlay = np.asarray(Image.open(predictions / "overlays" / path.with_suffix(".jpg").name))
        assert overlay.shape == (*annotated.shape, 3)
    assert scores(counts) == pytest.approx({name: numbers[name] for name in ("mIoU", "aAcc", "mAcc")})
    assert numbers["pixels"] == counts.tolist()


def test_options_of_the_test_change_the_answer_not_the_model(
    segment_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = segment_config()
    train_segmenter(config)
    found = []
    for number, options in enumerate(
        ([], ["--test.scales=[0.5,1.5]", "--test.flip=true", "--test.window=0"])
    ):
        out = tmp_path / f"{number}.json"
        assert main(["segment", "eval", config.run.dir, "--out", str(out), *options]) == 0
        found.append(json.loads(out.read_text())["pixels"])
    assert found[0] != found[1] and np.sum(found[0]) == np.sum(found[1])
    capsys.readouterr()
    line = error_of(["segment", "eval", config.run.dir, "--model.head_dim=9"], capsys)
    assert "model.head_dim = 8 (got 9)" in line
    line = error_of(["segment", "eval", config.run.dir, "--data.num_classes=9"], capsys)
    assert "data.num_classes = 4 (got 9)" in line


def test_resuming_with_other_classes_is_refused(segment_config: Callable[..., Any]) -> None:
    train_segmenter(segment_config(steps=2))
    with pytest.raises(InputError, match=r"data\.num_classes = 4 \(got 5\)"):
        train_segmenter(segment_config(data={"num_classes": 5}))


def broken_copy(photographs: Path, tmp_path: Path) -> dict[str, str]:
    """The photographs, one label map of another size, one of an unknown class, one missing."""
    folders = {}
    for name, part in (("root", "images"), ("labels", "labels")):
        (tmp_path / part).mkdir()
        for path in (photographs / part).iterdir():
            (tmp_path / part / path.name).write_bytes(path.read_bytes())
        folders[name] = str(tmp_path / part)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "labels/0001.png")
    labels = np.asarray(Image.open(tmp_path / "labels/0002.png")).copy()
    labels[:9, :9] = 77
    Image.fromarray(labels).save(tmp_path / "labels/0002.png")
    (tmp_path / "labels/0003.png").unlink()
    return folders


def test_broken_annotations_are_skipped_and_counted(
    segment_config: Callable[..., Any], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = broken_copy(photographs, tmp_path)
    config = segment_config(data={**folders, "broken": "skip", "val_fraction": 0.0}, steps=6)
    train_segmenter(config)
    assert "left out 1 training images without a label map:" in capsys.readouterr().out
    (event,) = logged(config.run.dir, "left_out")
    assert "0003.png" in event["lines"][1]
    bad = last_state(config.run.dir)["bad_images"]
    assert len(bad) == 2 and any("9 x 9" in line for line in bad) and any("got 77" in line for line in bad)
    out = tmp_path / "eval.json"
    assert main(["segment", "eval", config.run.dir, "--out", str(out)]) == 0
    numbers = json.loads(out.read_text())
    assert numbers["images"] == 3 and len(numbers["skipped"]) == 2 and len(numbers["left_out"]) == 1


def test_broken_annotations_end_the_command_in_a_line(
    segment_config: Callable[..., Any], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = segment_config(data={**broken_copy(photographs, tmp_path), "val_fraction": 0.0})
    save_config(config, tmp_path / "run.yaml")
    command = ["segment", "train", "--config", str(tmp_path / "run.yaml")]
    assert "expected a label map, got no such file" in error_of(command, capsys)
    (tmp_path / "images/0003.jpg").unlink()
    line = error_of(command, capsys)
    assert "data.labels: expected " in line and ("9 x 9" in line or "got 77" in line)


def test_refusals(
    segment_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: expected at least 2, as UPerNet's BatchNorm"):
        train_segmenter(segment_config(batch_size=1))
    with pytest.raises(InputError, match=r"run\.strategy: expected auto or ddp for segmentation, got fsdp"):
        train_segmenter(segment_config(run={"strategy": "fsdp"}))
    assert "segment: expected train, eval or predict, got none." in error_of(["segment"], capsys)
    (tmp_path / "empty").mkdir()
    line = error_of(["segment", "eval", str(tmp_path / "empty")], capsys)
    assert "checkpoint: expected step_*.pt in" in line
    torch.save({"format": "fcmae-1", "kind": "pretrain", "step": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"expected one of fcmae segment train, got pretrain"):
        load_segmenter(tmp_path / "other.pt")


def test_prediction_refuses_and_skips(
    segment_config: Callable[..., Any], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = segment_config(steps=2)
    train_segmenter(config)
    capsys.readouterr()
    command = ["segment", "predict", config.run.dir]
    out = ["--out", str(tmp_path / "out")]
    image = str(photographs / "images/0001.jpg")
    assert "IMAGES: expected a file or a folder" in error_of(
        [*command, str(tmp_path / "no.jpg"), *out], capsys
    )
    assert "IMAGES: expected names that differ" in error_of([*command, image, image, *out], capsys)
    (tmp_path / "bad.jpg").write_text("no picture")
    assert "expected a readable image" in error_of([*command, str(tmp_path / "bad.jpg"), *out], capsys)
    assert main([*command, image, str(tmp_path / "bad.jpg"), *out]) == 0
    printed = capsys.readouterr().out
    assert "skipped" in printed and "bad.jpg" in printed and "wrote 1 label maps" in printed


@pytest.mark.slow
def test_processes_share_an_evaluation(segment_config: Callable[..., Any], tmp_path: Path) -> None:
    config = segment_config(data={"val_fraction": 0.5}, steps=2, run={"devices": 2})
    save_config(config, tmp_path / "run.yaml")
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "fcmae"]
    arguments = [*command, "segment", "train", "--config", str(tmp_path / "run.yaml")]
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    out = tmp_path / "eval.json"
    assert main(["segment", "eval", config.run.dir, "--out", str(out)]) == 0
    numbers, last = json.loads(out.read_text()), logged(config.run.dir, "eval")[-1]
    assert {name: last[name] for name in ("mIoU", "aAcc", "mAcc")} == pytest.approx(
        {name: numbers[name] for name in ("mIoU", "aAcc", "mAcc")}
    )
