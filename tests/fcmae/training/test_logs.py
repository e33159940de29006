"""log.jsonl: one good line an event, and no curve twice."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fcmae.errors import InputError
from fcmae.training.logs import RunLog, peak_memory_mb


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=2) as log:
        log.write("train", step=1, loss=0.5, lr=0.1)
        assert lines(tmp_path) == [{"event": "train", "step": 1, "loss": 0.5, "lr": 0.1}]


def test_resuming_drops_what_will_be_written_again_and_a_line_cut_off(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=9) as log:
        log.write("start", step=0)
        for step in (1, 2, 3):
            log.write("train", step=step, loss=float(step))
        log.write("eval", step=3, accuracy=0.5)
        log.write("bad_image", step=3, name="x.png")
        log.write("non_finite", step=4)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    with RunLog(tmp_path, start=2, steps=9) as log:
        log.write("train", step=3, loss=3.5)
    assert [(line["event"], line["step"]) for line in lines(tmp_path)] == [
        ("start", 0), ("train", 1), ("train", 2), ("non_finite", 4), ("train", 3)
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "tensorboard"]


def test_tensorboard_has_the_curve_once(tmp_path: Path):
    for start, loss in ((0, 1.0), (1, 2.0)):
        with RunLog(tmp_path, start=start, steps=3) as log:
            for step in range(start + 1, 4):
                log.write("train", step=step, loss=loss, note="not a number")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 2.0),
    ]


def test_other_processes_keep_to_their_own_file(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=1, rank=1) as log:
        log.write("bad_image", step=1, name="x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["log-rank1.jsonl"]


def test_works_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with RunLog(tmp_path, start=0, steps=3) as log:
        log.say("hello")
        for step in range(3):
            log.advance(loss=1 / (step + 1))
    shown = capsys.readouterr()
    assert "hello" in shown.out
    assert "3/3" in shown.err and "loss=0.3333" in shown.err


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "run").write_text("a file in the folder's place")
    with pytest.raises(InputError, match=r"run\.dir: expected to write"):
        RunLog(tmp_path / "run", start=0, steps=1)


def test_peak_memory_counts_what_was_touched():
    before = peak_memory_mb(torch.device("cpu"))
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    after = peak_memory_mb(torch.device("cpu"))
    assert block.sum() == 64 * 2**20
    assert 10 < before <= after < 2**20  # MiB: neither KiB nor bytes
