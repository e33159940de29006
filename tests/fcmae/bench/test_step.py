"""The benchmark's own logic on a tiny size: processes, interleaving, table, JSON and bad input."""

import json
from types import SimpleNamespace

import pytest

from fcmae.bench.step import _require_parity, format_table, main
from fcmae.errors import InputError

TINY = [
    "--backbone",
    "convnextv2_atto",
    "--batch-size",
    "1",
    "--image-size",
    "64",
    "--steps",
    "2",
    "--threads",
    "1",
]


@pytest.mark.slow
def test_arms_run_in_processes_and_agree(tmp_path, capsys) -> None:
    path = tmp_path / "step.json"
    arms = ["sparse", "direct", "masked_dense"]
    assert main([*TINY, "--arms", *arms, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [r["arm"] for r in report["results"]] == arms
    losses = [r["loss"] for r in report["results"]]
    assert max(losses) - min(losses) < 1e-4 * max(losses)
    assert all(len(r["seconds"]) == 2 and r["peak_bytes_above_weights"] > 0 for r in report["results"])
    assert report["machine"]["cores"] >= 1
    printed = capsys.readouterr().out
    assert all(arm in printed for arm in arms) and "ratios to masked_dense" in printed


def test_arms_of_other_losses_are_not_timed() -> None:
    def arm(name: str, loss: float) -> SimpleNamespace:
        return SimpleNamespace(spec=SimpleNamespace(arm=name, precision="fp32"), facts={"loss": loss})

    _require_parity([arm("sparse", 1.0), arm("mae", 3.0), arm("masked_dense", 1.00001)])
    for loss in (1.01, float("nan")):
        with pytest.raises(RuntimeError, match="nothing was timed"):
            _require_parity([arm("sparse", 1.0), arm("masked_dense", loss)])


def test_ratios_are_taken_pair_by_pair() -> None:
    base = {"mask_ratio": 0.6, "min_seconds": 1, "images_per_second": 1, "peak_bytes_above_weights": 2**20}
    results = [
        {**base, "arm": "a", "seconds": [1, 2, 30], "median_seconds": 2},
        {**base, "arm": "b", "seconds": [2, 4, 40], "median_seconds": 4},
    ]
    row = format_table(results).splitlines()[1].split()
    assert row[0] == "a" and row[5] == "0.500"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backbone", "convnext_tiny"], "Did you mean convnextv2_tiny"),
        (["--steps", "0"], "--steps: expected at least 1"),
        (["--image-size", "100"], "divisible by the patch size 32"),
        (["--mask-ratio", "0.999"], "expected some of 49 patches"),
        (["--backend", "cuda"], "backend: expected an engine .* got 'cuda'"),
    ],
)
def test_bad_input_is_named_before_a_process_starts(argv: list[str], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        main(argv)
