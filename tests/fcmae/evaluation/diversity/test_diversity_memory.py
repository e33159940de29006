"""Diversity of any number of images takes the memory of one batch: 1000 of a Base model fit in 4 GB."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc here")

# Prints the peak of resident memory in MiB, of few images and of many.
PROGRAM = """
import re, sys
import torch
from torch import nn
torch.set_num_threads(1)
from fcmae.evaluation.diversity import measure_diversity
kind, *counts = sys.argv[1:]
if kind == "base":
    import timm
    model, modules, side = timm.create_model("convnextv2_base"), r".*mlp\\.fc2", 224
else:  # eight layers of 64 channels on 56 x 56 sites: 5.6 MB an image
    model = nn.Sequential(*(nn.Conv2d(64 if layer else 3, 64, 1) for layer in range(8)))
    modules, side = r"[1-7]", 56
def peak(images):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    batches = (torch.randn(4, 3, side, side) for _ in range(images // 4))
    layers = measure_diversity(model, batches, modules=modules)
    assert {layer.images for layer in layers} == {images}
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print("peaks", *(peak(int(count)) for count in counts))
"""


def peaks(*arguments: str) -> list[float]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in run.stdout.split()[1:]]


def test_the_number_of_images_changes_nothing():
    _, few, many = peaks("small", "4", "4", "36")  # the first call is what torch takes for itself
    assert many - few < 60  # of the 180 MB that the features of the other 32 images take


@pytest.mark.slow
def test_base_at_224_pixels_stays_below_four_gigabytes():
    """Where the number of images changes nothing, so do 1000."""
    (peak,) = peaks("base", "8")
    assert 4 * 88.7e6 / 2**20 < peak < 4096  # its weights alone are 338 MB
