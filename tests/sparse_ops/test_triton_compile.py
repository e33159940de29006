"""Every kernel becomes machine code for three generations of GPUs, and no default spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton: cannot be imported")

MODULE = "sparse_ops.backends.triton_gpu.compile_report"
COMMITTED = Path(__file__).parents[2] / "docs" / "benchmarks" / "kernels.json"


def rows(path: Path) -> dict[str, dict]:
    """The report's rows by what was compiled."""
    measured = ("registers", "spilled_bytes", "shared_bytes")
    report = json.loads(path.read_text())["kernels"]
    return {json.dumps({k: v for k, v in row.items() if k not in measured}): row for row in report}


@pytest.mark.slow
def test_every_kernel_compiles_and_no_default_spills(tmp_path: Path) -> None:
    # In a process of its own: the interpreter that the other tests use compiles nothing.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", MODULE, "--out", str(tmp_path / "kernels.json")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert rows(tmp_path / "kernels.json").keys() == rows(COMMITTED).keys(), (
        "the committed report is an old one"
    )


def test_committed_report_covers_every_kernel_and_target() -> None:
    from sparse_ops.backends.triton_gpu import conv_kernels, grn_kernels

    report = list(rows(COMMITTED).values())
    sources = [Path(module.__file__).read_text() for module in (conv_kernels, grn_kernels)]
    entries = {
        line.removeprefix("def ").partition("(")[0]
        for source in sources
        for line in source.splitlines()
        if line.startswith("def ") and not line.startswith("def _")
    }
    assert {(row["kernel"], row["target"]) for row in report} == {
        (kernel, target) for kernel in entries for target in ("sm_80", "sm_90", "sm_100")
    }
    assert not [row for row in report if row["default"] and row["spilled_bytes"]]
