"""The script is the shipped ablation of the three executions, with further options of `fcmae ablate`."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "ablate_sparse_vs_dense.py"


def test_the_script_would_run_three_executions_with_two_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--dry-run", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{arm}, seed {seed} (model.execution={arm}): pretrain, score"
        for seed in (0, 1)
        for arm in ("sparse", "masked_dense", "leaky_dense")
    ]
