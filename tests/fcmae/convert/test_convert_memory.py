"""A large checkpoint is converted in little more memory than it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcmae.convert import Architecture

# What the process holds more than after the imports, in units of the file. Files that are mapped count, too.
PROGRAM = """
import os, re, sys
import torch
torch.set_num_threads(1)
import transformers  # what is imported is no part of the conversion
from fcmae.convert.command import main
def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before = kib("VmRSS")
main(sys.argv[1:])
print("ratio", (kib("VmHWM") - before) * 1024 / os.path.getsize(sys.argv[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_peak_memory_is_below_two_and_a_half_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers: not installed")
    architecture = Architecture(backbone="convnextv2_tiny", depths=(1, 1, 1, 2), dims=(64, 128, 256, 1536))
    shapes = architecture.our_shapes(num_classes=0, decoder={})
    path = tmp_path / "large.pth"
    torch.save({"model": {name: torch.full(shape, 1e-3) for name, shape in shapes.items()}}, path)
    assert path.stat().st_size > 1.5e8
    # Folding needs most: what it changes is held twice.
    flags = ["--target", "transformers", "--fold-layer-norm", "--out", str(tmp_path / "out.safetensors")]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    ratio = float(run.stdout.split()[-1])
    # The file is read once, whatever is made of it; less would mean that nothing was measured.
    assert 1.0 < ratio < 2.5
