"""Class selectivity: a loop by hand, its ends, and the page."""

import json
from pathlib import Path

import pytest
import torch
from encoder_runs import MODELS, save_run
from torch import nn

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.errors import InputError
from fcmae.evaluation.diversity.selectivity import class_selectivity, measure_selectivity


def test_ends_of_the_scale():
    #                        one class, all alike, 3 against 1, silent, opposed
    means = torch.tensor([[2.0, 5.0, 3.0, 0.0, -1.0], [0.0, 5.0, 1.0, 0.0, 0.5], [0.0, 5.0, 1.0, 0.0, -1.0]])
    assert class_selectivity(means).tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]


def test_equals_a_loop_over_classes_whatever_the_batches():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.GELU(), nn.Conv2d(5, 1, 1)).double()
    images = torch.randn(12, 3, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2] * 3)  # class 2 twice as often: means of classes, not of images
    activation = nn.functional.gelu(model[0](images)).mean(dim=(2, 3)).detach()
    expected = []
    for channel in activation.T:
        means = [channel[labels == label].mean().item() for label in range(3)]
        largest = max(means)
        rest = (sum(means) - largest) / 2
        expected.append((largest - rest) / (abs(largest) + abs(rest)))
    for size in (12, 5):
        batches = zip(images.split(size), labels.split(size), strict=True)
        found = measure_selectivity(model, batches, classes=3, modules="2")
        assert list(found) == ["2"] and found["2"].tolist() == pytest.approx(expected, rel=1e-12)


def test_classes_without_images_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 1, 1))
    batches = [(torch.randn(2, 3, 4, 4), torch.tensor([0, 2]))]
    with pytest.raises(InputError, match=r"selectivity: expected images of each .*, got 2 of 3 classes"):
        measure_selectivity(model, batches, classes=3, modules="1")


def test_command_adds_it_to_the_page(folder_data: DataConfig, tmp_path: Path):
    save_run(tmp_path / "a", MODELS["convnextv2"], folder_data)
    options = ["--data.source=folder", f"--data.root={folder_data.root}", "--data.val_fraction=0.25"]
    options += ["--data.image_size=32", "--data.workers=0", f"--out={tmp_path / 'out'}", "--selectivity=true"]
    assert cli.main(["diversity", str(tmp_path / "a"), *options]) == 0
    (layers,) = json.loads((tmp_path / "out" / "diversity.json").read_text())["networks"].values()
    for layer in layers:
        assert len(layer["class_selectivity"]) == layer["channels"]
        assert 0 <= min(layer["class_selectivity"]) < max(layer["class_selectivity"]) <= 1
    assert "Class selectivity" in (tmp_path / "out" / "report.html").read_text()
