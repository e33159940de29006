"""`scripts/bench_gpu.py` from its options to its files, on a CPU at sizes at which figures mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_NEEDED = (
    "braceexpand",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "pandas",
    "sklearn",
    "tensorboard",
    "webdataset",
)
"""What other commands of ours import; a machine with torch, triton and timm runs the benchmark."""


@pytest.mark.slow
def test_a_run_ends_with_its_results_and_a_table(tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in NOT_NEEDED:
        (stubs / f"{name}.py").write_text(f"raise ImportError({name!r})")
    command = [sys.executable, "scripts/bench_gpu.py", "--tiny", "--device", "cpu", "--commit", "abc"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{stubs}{os.pathsep}{ROOT}"},
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "cpu.json").read_text())
    assert report["device"]["commit"] == "abc" and report["skipped"] == []
    assert len(report["parity"]) >= 4 and report["kernels_stopped"] is None
    timed = [kernel for kernel in report["kernels"] if "failed" not in kernel]
    assert {kernel["op"] for kernel in timed} == {"depthwise", "regular", "grn", "grn_mlp"}
    (case,) = report["steps"]
    sparse, dense = case["arms"]["sparse"], case["arms"]["masked_dense"]
    assert len(sparse["turns"]) == 2 and sparse["engines"]["grn_mlp"] == "scatter"
    assert sparse["loss"] == pytest.approx(dense["loss"], rel=0.02) and sparse["peak_bytes"] > 0
    assert sparse["floor_ms"] < dense["floor_ms"]
    assert [ratio["to"] for ratio in case["ratios"]] == ["masked_dense"]
    lines = run.stdout.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("results:")) :]
    assert any("NOT A GPU" in line for line in table)
    assert sum(line.startswith("atto, ") for line in table) == 2
