"""Naming where a value stops being finite, and counting images that cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcmae.errors import InputError
from fcmae.training.engine.guards import BadImages, LossReading, first_non_finite, first_non_finite_weight
from fcmae.training.engine.logs import RunLog
from sparse_ops import ActiveSites, SparseImage


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class OnRows(nn.Module):
    def forward(self, x: Tensor) -> SparseImage:
        sites = ActiveSites.from_mask(torch.ones(1, 2, 2, dtype=torch.bool))
        return SparseImage(torch.full((4, 1), torch.nan) * x.mean(), sites)


class Densified(nn.Module):
    def forward(self, image: SparseImage) -> Tensor:
        return image.features


def test_the_innermost_module_that_ran_first_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Identity(), Breaks()), nn.ReLU())
    assert first_non_finite(model, torch.ones(2)) == "the output of 1.1"
    assert not any(module._forward_hooks for module in model.modules())


def test_sparse_images_are_looked_into():
    assert (
        first_non_finite(nn.Sequential(nn.Linear(2, 2), OnRows(), Densified()), torch.ones(2))
        == "the output of 1"
    )


def test_images_and_weights_are_named_before_outputs():
    model = nn.Sequential(nn.Linear(2, 2), Breaks())
    assert first_non_finite(model, torch.tensor([1.0, torch.inf])) == "the input images"
    with torch.no_grad():
        model[0].bias[1] = torch.nan
    assert first_non_finite(model, torch.ones(2)) == "the weight 0.bias"


def test_all_finite():
    model = nn.Linear(2, 2)
    assert first_non_finite_weight(model) is None
    assert first_non_finite(nn.Sequential(model), torch.ones(2)) == "the loss itself"


def test_each_bad_image_is_named_once_and_too_many_stop_the_run(tmp_path: Path):
    with RunLog(tmp_path, start=0, steps=9) as log:
        bad = BadImages(log, limit=2, known=["a.png: truncated"])
        bad.note(["a.png: truncated", "b.png: empty"], step=1)
        bad.note(["b.png: empty"], step=2)
        with pytest.raises(InputError, match=r"at most 2 unreadable images, got 3, the last: c\.png: empty"):
            bad.note(["c.png: empty"], step=3)
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["name"]) for line in written] == [(1, "b.png: empty"), (3, "c.png: empty")]


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_reading_the_loss_takes_no_tensor_from_the_host():
    """On a GPU such a copy would wait for the forward pass, and the backward pass would queue too late."""
    fabric, loss = Fabric(accelerator="cpu", devices=1), torch.tensor(2.5)
    with Operators() as ran:
        reading = LossReading(fabric, loss, stop=True)
    assert "aten::stack" in ran.names and "aten::lift_fresh" not in ran.names
    assert reading.wait() == (2.5, True)
    with Operators() as ran:
        torch.tensor(1.0)
    assert "aten::lift_fresh" in ran.names  # the name by which torch knows them
