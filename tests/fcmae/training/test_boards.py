"""Dashboards: what they are told, and that a run without their library or the network is one line or none."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fcmae import cli
from fcmae.config import RunConfig
from fcmae.errors import InputError
from fcmae.training.engine.logs import RunLog, TensorBoard, boards, open_boards, require_loggers

PICTURE = torch.full((4, 6, 3), 200, dtype=torch.uint8)

PROGRAM = """
import sys
from functools import partial
import torch
from fcmae.config import RunConfig
from fcmae.training.engine.logs import RunLog, open_boards
run = RunConfig(dir=sys.argv[1], loggers=(sys.argv[2],), project="tests")
for start in (0, 2):
    boards = partial(open_boards, run, start=start, config={"train": {"base_lr": 0.125}})
    with RunLog(run.dir, start=start, steps=4, boards=boards) as log:
        for step in range(start + 1, start + 3):
            log.write("train", step=step, loss=1 / step, note="no number")
        log.picture("reconstruction", torch.full((4, 6, 3), 200, dtype=torch.uint8), step=start + 2)
"""


def run_twice(logger: str, tmp_path: Path, **settings: str) -> None:
    """Two steps, resumed for two more, in a process of its own: the libraries leave threads."""
    pytest.importorskip(logger, reason=f"{logger}: not installed")
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "a" / "run"), logger]
    run = subprocess.run(
        arguments, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_tensorboard_has_the_curve_once_and_the_pictures(tmp_path: Path):
    for start, loss in ((0, 1.0), (1, 2.0)):
        opened = [TensorBoard(tmp_path, start=start)]
        with RunLog(tmp_path, start=start, steps=3, boards=lambda opened=opened: opened) as log:
            for step in range(start + 1, 4):
                log.write("train", step=step, loss=loss, note="not a number")
            log.picture("reconstruction", PICTURE, step=3)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert scalars == [(1, 1.0), (2, 2.0), (3, 2.0)]
    (picture,) = board.Images("reconstruction")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)


def test_wandb_without_a_network(tmp_path: Path):
    run_twice("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    folder = tmp_path / "a" / "run" / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1, "a resumed run is the same run"
    written = b"".join(file.read_bytes() for file in folder.glob("offline-run-*/*.wandb"))
    assert all(text in written for text in (b"train/loss", b"optimiser_step", b"0.333", b"base_lr", b"0.125"))
    assert b"no number" not in written
    assert list(folder.glob("offline-run-*/files/media/images/reconstruction*.png"))


def test_wandb_that_cannot_begin_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb", reason="wandb: not installed")

    def refuse(**options: object) -> None:
        raise wandb.errors.UsageError("No API key configured.\nLog in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(
        InputError, match=r"to begin a run, got: No API key configured\. Log in\..*WANDB_MODE=off"
    ):
        open_boards(RunConfig(dir=str(tmp_path), loggers=("wandb",)), start=0, config={})


def test_trackio_on_this_machine(tmp_path: Path):
    run_twice("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (file,) = (tmp_path / "trackio").glob("tests*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step, id").fetchall()
    database.close()
    assert {name for name, _, _ in rows} == {"a-run"}
    told = [(step, json.loads(text)) for _, step, text in rows]
    losses = [(step, values["train/loss"]) for step, values in told if "train/loss" in values]
    assert losses == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert [step for step, values in told if "reconstruction" in values] == [2, 4]
    assert list((tmp_path / "trackio").glob("media/**/*.png"))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_library_is_one_line_before_anything_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(boards, "find_spec", lambda library: None if library == name else object())
    with pytest.raises(InputError, match=rf"run\.loggers: expected {name} .*'fcmae\[{name}\]'"):
        require_loggers(("tensorboard", name))
    argv = ["pretrain", f"--run.loggers=[tensorboard,{name}]", f"--run.dir={tmp_path / 'run'}"]
    assert cli.main([*argv, "--run.accelerator=cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and f"expected {name} to be installed" in shown.err
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["pretrain", "--run.loggers=[wandbb]"]) == 2
    assert "run.loggers" in capsys.readouterr().err
