"""A large checkpoint is converted in little more memory than it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcmae.convert import Architecture

# What the process holds more than before, in units of the file; pages of a mapped file count, too. A small
# conversion comes first: libraries that are read when they are first used are no part of the answer.
PROGRAM = """
import os, re, sys
import torch
torch.set_num_threads(1)
from fcmae.convert.command import main
def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
small, large, *flags = sys.argv[1:]
main([small, *flags])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kib("VmRSS")
main([large, *flags, "--force"])
print("ratio", (kib("VmHWM") - before) * 1024 / os.path.getsize(large))
"""


def write_checkpoint(path: Path, dims: tuple[int, ...]) -> Path:
    architecture = Architecture(backbone="convnextv2_tiny", depths=(1, 1, 1, 4), dims=dims)
    shapes = architecture.our_shapes(num_classes=0, decoder={})
    torch.save({"model": {name: torch.full(shape, 1e-3) for name, shape in shapes.items()}}, path)
    return path


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc here")
def test_peak_memory_is_below_two_and_a_half_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers: not installed")
    small = write_checkpoint(tmp_path / "small.pth", (8, 16, 24, 32))
    large = write_checkpoint(tmp_path / "large.pth", (64, 128, 256, 1024))
    assert large.stat().st_size > 1.4e8
    # Folding needs most: what it changes is held twice.
    flags = ["--target", "transformers", "--fold-layer-norm", "--out", str(tmp_path / "out.safetensors")]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small), str(large), *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    ratio = float(run.stdout.split()[-1])
    # The file is read once, whatever is made of it; less would mean that nothing was measured.
    assert 1.0 < ratio < 2.5, run.stdout
