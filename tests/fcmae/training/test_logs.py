"""log.jsonl: one good line an event, and no curve twice."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.errors import InputError
from fcmae.training.engine.logs import RunLog, TensorBoard, peak_memory_mb
from fcmae.training.engine.logs.boards import Board


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
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_other_processes_keep_to_their_own_file(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=1, rank=1, boards=lambda: [TensorBoard(tmp_path, start=0)]) as log:
        log.write("bad_image", step=1, name="x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["log-rank1.jsonl"]


def test_a_picture_is_a_file_and_a_line(tmp_path: Path):
    picture = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    with RunLog(tmp_path, start=0, steps=9) as log:
        log.picture("reconstruction", picture, step=3, names=["a.png"])
    file = "reconstructions/step_00000003.png"
    assert lines(tmp_path) == [{"event": "reconstruction", "step": 3, "file": file, "names": ["a.png"]}]
    with Image.open(tmp_path / file) as image:
        assert torch.equal(torch.from_numpy(np.array(image)), picture)
    assert [path.name for path in (tmp_path / "reconstructions").iterdir()] == ["step_00000003.png"]


def test_a_picture_on_a_full_disk_is_one_line(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=9) as log:
        (tmp_path / "reconstructions").write_text("a file in the folder's place")
        with pytest.raises(InputError, match=r"run\.dir: expected to write .*step_00000003\.png"):
            log.picture("reconstruction", torch.zeros(2, 2, 3, dtype=torch.uint8), step=3)


class FullBoard(Board):
    """A dashboard on a full disk, as TensorBoard's meets it: some time later, and when it is closed."""

    def numbers(self, values: Mapping[str, float], *, step: int) -> None:
        if step > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    def picture(self, name: str, picture: torch.Tensor, *, step: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_dashboard_on_a_full_disk_is_one_line(tmp_path: Path):
    line = r"run\.dir: expected to write .*, got: No space left on device\."
    log = RunLog(tmp_path, start=0, steps=2, boards=lambda: [FullBoard()])
    log.write("train", step=1, loss=0.5)
    with pytest.raises(InputError, match=line):
        log.write("train", step=2, loss=0.5)
    with pytest.raises(InputError, match=line):
        log.picture("reconstruction", torch.zeros(2, 2, 3, dtype=torch.uint8), step=2)
    with pytest.raises(InputError, match=line), log:
        pass
    with (
        pytest.raises(ValueError, match="what ended the run"),
        RunLog(tmp_path, start=0, steps=2, boards=lambda: [FullBoard()]),
    ):
        raise ValueError("what ended the run")


def test_a_number_that_is_not_finite_is_null(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=2) as log:
        log.write("eval", step=1, loss=float("inf"), accuracy=0.5)
    assert lines(tmp_path) == [{"event": "eval", "step": 1, "loss": None, "accuracy": 0.5}]


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
