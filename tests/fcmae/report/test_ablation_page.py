"""The table of an ablation against numbers worked out by hand, and the page that shows them."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from fcmae.report.ablation import Curve, write_ablation_page
from fcmae.report.ablation_result import (
    AblationResult,
    Agreement,
    RunResult,
    Speed,
    paired_differences,
    summarise,
)
from fcmae.report.ablation_text import text_table

HERE, THERE = "a CPU, 2 cores, torch 2.9, commit 0123456789ab", "a GPU, torch 2.9"


def run(arm: str, seed: int, loss: float, knn: float, **values: Any) -> RunResult:
    known: dict[str, Any] = {
        "step_seconds": 0.5,
        "data_wait": 0.1,
        "peak_memory_mb": 700.0,
        "measured_on": [HERE],
    }
    return RunResult(
        arm=arm, seed=seed, state="done", metrics={"loss": loss, "knn": knn}, **{**known, **values}
    )


def ablation(*runs: RunResult, **values: Any) -> AblationResult:
    known: dict[str, Any] = {
        "title": "Ratios",
        "file": "ratios.yaml",
        "arms": {"r0.6": {}, "r<0.3>": {"model.mask_ratio": "0.3"}, "late": {}},
        "changes": {"train.steps": "9"},
        "seeds": [0, 1, 2],
        "metrics": ["loss", "knn"],
    }
    return AblationResult(runs=runs, **{**known, **values})


RUNS = (
    *(
        run("r0.6", seed, loss, knn)
        for seed, (loss, knn) in enumerate([(0.50, 0.90), (0.52, 0.92), (0.54, 0.94)])
    ),
    *(
        run(
            "r<0.3>",
            seed,
            loss,
            knn,
            step_seconds=0.75,
            peak_memory_mb=900.0 + seed,
            measured_on=[HERE, THERE],
        )
        for seed, (loss, knn) in enumerate([(0.60, 0.91), (0.63, 0.90), (0.66, 0.95)])
    ),
    RunResult(arm="late", seed=0, state="failed", error="pretrain: no space", measured_on=[HERE]),
    RunResult(arm="late", seed=1, state="unfinished"),
)


def test_means_and_spreads_are_those_of_the_finished_seeds() -> None:
    first, second, late = summarise(ablation(*RUNS))
    assert first.metrics["loss"] == pytest.approx((0.52, 0.02)) and first.seeds == 3
    assert second.metrics["knn"] == pytest.approx((0.92, math.sqrt(0.0014 / 2)))
    assert (second.step_seconds, second.peak_memory_mb, second.measured_on) == (0.75, 902.0, [HERE, THERE])
    assert (late.seeds, late.metrics, late.step_seconds) == (0, {}, None)


def test_paired_differences_are_student_s_over_the_seeds() -> None:
    """Loss: differences 0.10, 0.11, 0.12, standard error 0.01 / sqrt(3), t(2, 0.975) = 4.302653."""
    loss, knn = paired_differences(ablation(*RUNS))
    margin = 4.302653 * 0.01 / math.sqrt(3)
    assert (loss.arm, loss.metric, loss.seeds, loss.outcome) == ("r<0.3>", "loss", 3, "higher")
    assert (loss.difference, loss.low, loss.high) == pytest.approx((0.11, 0.11 - margin, 0.11 + margin))
    # k-NN: 0.01, -0.02, 0.01: mean 0, variance (1 + 4 + 1)e-4 / 2.
    margin = 4.302653 * math.sqrt(3e-4 / 3)
    assert knn.outcome == "not settled"
    assert (knn.difference, knn.low, knn.high) == pytest.approx((0, -margin, margin), abs=1e-8)


def test_only_seeds_of_both_arms_are_paired() -> None:
    runs = (
        run("r0.6", 0, 0.5, 0.9),
        run("r<0.3>", 0, 0.4, 0.9),
        run("r<0.3>", 1, 9.0, 0.1),
        run("late", 2, 1, 1),
    )
    loss, knn = paired_differences(ablation(*runs))
    assert (loss.seeds, loss.difference, loss.low, loss.outcome) == (
        1,
        pytest.approx(-0.1),
        None,
        "not settled",
    )
    assert knn.difference == 0


def test_the_page_holds_everything_and_needs_nothing(tmp_path: Path) -> None:
    result = ablation(
        *RUNS,
        agreement=Agreement(arms=("r0.6", "late"), steps=50, tolerance=1e-4, worst={0: 2e-6}),
        speed=Speed(arms=("r0.6", "late"), ratios={0: 0.4, 1: 0.42}, visible=0.375, flops=0.398),
        held_out={"train": 1258, "val": 539},
    )
    path = tmp_path / "report.html"
    curves = [Curve(name=name, steps=[1, 2, 3], losses=[1.0, 0.8, 0.7]) for name in ("r0.6", "r<0.3>")]
    write_ablation_page(path, result, curves=curves, configs={"r0.6": "steps: 9"})
    text = path.read_text()
    assert not re.search(r"https?://|<link|src=(?!\"data:)", text)
    assert text.count('class="sortable"') == 3 and text.count("<svg") == 1
    assert "r&lt;0.3&gt;" in text and "<0.3>" not in text
    for expected in (
        ">92.0<",  # k-NN of both arms, percent
        ">+0.1100<",
        ">not settled<",
        ">1.50<",  # time of the second arm over the first's
        f"A: {HERE}",
        f"B: {THERE}",
        ">A, B<",
        "late, seed 0 failed: pretrain: no space",
        "takes 0.410 of the time of late: 0.400 (seed 0), 0.420 (seed 1)",
        "The encoder sees 0.375 of the cells",
        "is 0.398 of the other",
        "2e-06 (seed 0)",
        "model.mask_ratio = 0.3",
        "train.steps = 9",
        "1,258 scanned digits to train on, 539 held out",
        "6 of 8 runs are done",
    ):
        assert expected in text, expected
    rows = re.findall(r"<tr><td>(?:r0.6|r&lt;0.3&gt;)</td>.*?</tr>", text)
    assert rows and all(
        ">A<" in row or ">A, B<" in row for row in rows if "settled" not in row and "higher" not in row
    )


def test_the_terminal_s_table_has_the_same_numbers() -> None:
    lines = text_table(ablation(*RUNS)).splitlines()
    assert lines[0].split() == ["arm", "seeds", "loss", "k-NN,", "%", "step,", "s", "peak", "MiB"]
    assert lines[1].split() == ["r0.6", "3", "0.5200", "±", "0.0200", "92.0", "±", "2.0", "0.500", "700"]
    assert lines[3].split() == ["late", "0", "-", "-", "-", "-"]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    alone = ablation(run("r0.6", 0, 0.5, 0.9))
    assert summarise(alone)[0].metrics["loss"] == (0.5, None)
    line = text_table(alone).splitlines()[1]
    assert line.split() == ["r0.6", "1", "0.5000", "90.0", "0.500", "700"]
    write_ablation_page(tmp_path / "page.html", alone, curves=[], configs={})
    row = re.search(r"<tr><td>r0.6</td>.*?</tr>", (tmp_path / "page.html").read_text())
    assert row is not None and ">0.5000</td><td>-</td>" in row[0]


@pytest.mark.parametrize(
    ("worst", "words"), [({0: 2e-4}, "DISAGREE"), ({}, "not compared"), ({0: 0.0}, "agree")]
)
def test_agreement_is_told_in_words(worst: dict[int, float], words: str) -> None:
    agreement = Agreement(arms=("r0.6", "late"), steps=50, tolerance=1e-4, worst=worst)
    assert words in text_table(ablation(*RUNS, agreement=agreement))
