"""The page of a run: what its folder says, told in full and without anything from outside."""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from test_page import ADDRESSES, read

from fcmae import cli
from fcmae.errors import InputError
from fcmae.report import plots
from fcmae.report.reconstruction import rows_of, sheet
from fcmae.report.run import read_run, write_run_page
from fcmae.report.run.command import main
from fcmae.report.run.events import counts, events_of, outcome, places
from fcmae.report.run.record import names_of

CONFIG = {
    "data": {"source": "digits", "root": None},
    "model": {"method": "fcmae", "backbone": "convnextv2_atto"},
    "train": {"steps": 40, "base_lr": 0.001},
    "run": {"dir": "here"},
}
START = {
    **{"event": "start", "step": 0, "images": 1797, "device": "cpu", "devices": 1, "resumed": None},
    **{"torch": "2.9", "python": "3.12", "processor": "A Processor", "cores": 4, "commit": "0123456789ab"},
}
END = {"event": "end", "step": 40, "seconds": 12.5, "peak_memory_mb": 99.0}


def train_line(step: int, **values: Any) -> dict[str, Any]:
    numbers = {"loss": 1 / step, "lr": 0.1, "gradient_norm": 2.0, "images_per_second": 100.0}
    return {"event": "train", "step": step, **numbers, "data_wait": 0.25, "memory_mb": 64.0, **values}


def write_run(folder: Path, *events: dict[str, Any], **settings: Any) -> Path:
    folder.mkdir(parents=True)
    config = {**CONFIG, "train": {**CONFIG["train"], **settings}, "run": {"dir": str(folder)}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def whole_run(folder: Path, **settings: Any) -> Path:
    return write_run(folder, START, *(train_line(step) for step in range(1, 41)), END, **settings)


def text_of(folder: Path) -> str:
    page = folder / "page.html"
    write_run_page(page, read_run(folder))
    return read(page)[1].text


@pytest.mark.parametrize(
    ("last", "words", "tone"),
    [
        ([END], "All 40 steps done.", "good"),
        ([], "The log ends at step 7 of 40: the run goes on, or was killed.", "plain"),
        ([END, {**START, "step": 40}], "The log ends at step 40", "plain"),
        ([{"event": "stopped", "step": 7, "request": "SIGTERM"}], "Stopped by SIGTERM after step 7", "plain"),
        (
            [{"event": "non_finite", "step": 8, "expected": "a finite loss, got nan", "first": "stem"}],
            "Ended at step 8 of 40: expected a finite loss, got nan; first in stem.",
            "bad",
        ),
        (
            [{"event": "collapse", "step": 9, "of": "feature_distance", "value": 0.001, "bound": 0.01}, END],
            "All 40 steps done, but features collapsed: feature_distance is 0.001",
            "bad",
        ),
    ],
)  # fmt: skip
def test_the_page_says_how_the_run_stands(
    tmp_path: Path, last: list[dict[str, Any]], words: str, tone: str
) -> None:
    run = read_run(write_run(tmp_path / "run", START, train_line(7), *last))
    assert outcome(run)[0].startswith(words) and outcome(run)[1] == tone
    assert words in text_of(tmp_path / "run")


def test_events_are_told_in_order_with_those_of_other_processes(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        START,
        train_line(1),
        {"event": "skipped_step", "step": 2, "lr": 0.1, "first": "the gradient of stem.0.weight"},
        {**START, "step": 1, "resumed": "checkpoints/step_1.pt"},
        {"event": "of_a_later_version", "step": 3, "thing": 4},
    )
    other = [{"event": "bad_image", "step": 2, "name": "b.png: truncated"}, train_line(2), START]
    (folder / "log-rank1.jsonl").write_text("".join(json.dumps(event) + "\n" for event in other))
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # a crash
    run = read_run(folder)
    assert events_of(run) == [
        (0, "start", "started on 1 x cpu"),
        (2, "skipped step", "not finite in the gradient of stem.0.weight"),
        (1, "start", "resumed from checkpoints/step_1.pt, on 1 x cpu"),
        (3, "of a later version", "thing 4"),
        (2, "unreadable image", "process 1: b.png: truncated"),
    ]
    assert counts(run) == {"resume": 1, "skipped step": 1, "of a later version": 1, "unreadable image": 1}
    text = text_of(folder)
    assert all(words in text for _, _, words in events_of(run))


def test_what_it_was_measured_on(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", START, {**START, "step": 3, "resumed": "x"}))
    assert places(run) == ["1 x cpu: A Processor, 4 cores, torch 2.9, commit 0123456789ab"]
    assert places(run)[0] in text_of(tmp_path / "a")
    old = {name: START[name] for name in ("event", "step", "images", "device", "devices", "resumed")}
    assert places(read_run(write_run(tmp_path / "b", old))) == ["1 x cpu: not recorded by that version"]


def test_the_page_has_every_curve_and_needs_nothing_outside(tmp_path: Path) -> None:
    evals = [{"event": "eval", "step": step, "accuracy": step / 40, "best_accuracy": 1.0} for step in (4, 40)]
    layers = {"feature_distance": 0.2, "stages.0.mlp.fc2": 0.2, "stages.3.mlp.fc2": 0.3}
    looks = [{"event": "diversity", "step": step, **layers} for step in (20, 40)]
    lines = [train_line(step, prototypes_in_use=5.0) for step in range(1, 41)]
    folder = write_run(tmp_path / "run", START, *lines, *evals, *looks, END)
    write_run_page(tmp_path / "page.html", read_run(folder))
    text, reader = read(tmp_path / "page.html")
    assert not re.search(r"https?:|//[a-z]|@import|<link|<iframe", text) and not ADDRESSES.findall(text)
    titles = re.findall(r'<svg role="img" aria-label="([^"]+) over the optimiser steps"', text)
    assert titles == [
        "loss", "learning rate", "norm of the gradient", "images/s", "data wait, share of the time",
        "peak memory, MiB", "prototypes in use", "accuracy", "cosine distance",
    ]  # fmt: skip
    assert "Loss, from first to last: 1 to 0.025." in reader.text
    assert "stages.3.mlp.fc2: 0.3 to 0.3" in reader.text
    assert "base_lr: 0.001" in reader.text
    assert len(reader.ids) == len(set(reader.ids)) and set(reader.references) <= set(reader.ids)


def test_a_run_that_has_logged_nothing_yet_has_a_page(tmp_path: Path) -> None:
    assert "The log ends at step 0 of 40" in text_of(write_run(tmp_path / "run"))


def test_pictures_of_the_run_are_on_the_page(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    original = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    events = []
    for step in range(1, 8):
        painted = torch.full_like(original, step)
        file = f"reconstructions/step_{step:08d}.png"
        (folder / "reconstructions").mkdir(exist_ok=True)
        Image.fromarray(sheet([original, original // 2, painted]).numpy()).save(folder / file)
        events.append({"event": "reconstruction", "step": step, "file": file, "names": ["a.png", "b.png"]})
    (folder / events[4]["file"]).write_bytes(b"cut off")
    with (folder / "log.jsonl").open("a") as file:
        file.write("".join(json.dumps(event) + "\n" for event in events))
    write_run_page(tmp_path / "page.html", read_run(folder))
    rows = ["original", "visible", "step 1", "step 3", "step 4", "step 7"]  # of 1, 3, 4, 5, 7
    alts = [image["alt"] for image in read(tmp_path / "page.html")[1].images]
    assert alts == [f"{name}, {row}" for name in ("a.png", "b.png") for row in rows]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(4, 4), (5, 9)])
def test_a_sheet_keeps_every_pixel(count: int, size: tuple[int, int]) -> None:
    rows = [torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8) for _ in range(3)]
    again = rows_of(sheet(rows), rows=3, count=count)
    assert all(torch.equal(row, expected) for row, expected in zip(again, rows, strict=True))


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    values = [1.0] * 10_000
    values[1234], values[9876] = 7.0, -3.0
    figure = plots.histories([("run", range(10_000), values)], label="loss")
    (line,) = figure.axes[0].get_lines()
    assert len(line.get_xdata()) <= 240
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == 7.0 and corners[:, 1].min() == -3.0


def test_several_runs_are_compared_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [whole_run(tmp_path / name / "pretrain", base_lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))]
    out = tmp_path / "both.html"
    assert cli.main(["report", *map(str, runs), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    text, reader = read(out)
    assert "a/pretrain" in reader.text and "b/pretrain" in reader.text
    differing = text[text.index("What differs") : text.index("</table>", text.index("What differs"))]
    assert re.findall(r"<td>([^<]*)</td>", differing) == ["train.base_lr", "0.1", "0.2"]
    assert "a/pretrain: 1 to 0.025, b/pretrain: 1 to 0.025" in reader.text
    assert not re.search(r"https?:|//[a-z]", text)


def test_names_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    names = (r"$\frac$", "_hidden", "$", "<script>$a$")
    runs = [whole_run(tmp_path / name) for name in names]
    out = tmp_path / "page.html"
    assert cli.main(["report", *map(str, runs), f"--out={out}"]) == 0
    text, _ = read(out)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    for name in names:
        assert f"{escape(name, quote=False)}</text>" in drawn, name


def test_one_run_has_its_page_in_its_folder(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "run")
    assert cli.main(["report", str(folder)]) == 0
    assert "All 40 steps done." in read(folder / "report.html")[1].text


def test_names_are_as_short_as_they_can_be() -> None:
    assert names_of([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert names_of([Path("runs/a/pretrain"), Path("runs/b/pretrain")]) == ["a/pretrain", "b/pretrain"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run: expected the folder of a run with config\.yaml"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match="expected a run's configuration"):
        read_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out: expected to write"):
        main([str(whole_run(tmp_path / "run")), f"--out={tmp_path / 'file' / 'page.html'}"])
