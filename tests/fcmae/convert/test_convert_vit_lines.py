"""What a reader of converted ViT weights is told to build takes all of them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from fcmae.convert import load_weights
from fcmae.convert.command import convert_checkpoint
from fcmae.convert.files import read_checkpoint


@pytest.mark.parametrize(("pool", "num_classes"), [("token", 0), ("token", 5), ("avg", 5)])
def test_the_printed_line_builds_timms_vit(pool: str, num_classes: int, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 192,
        "depth": 2,
        "num_heads": 3,
        "in_chans": 1,
    }
    model = timm.models.VisionTransformer(**sizes, global_pool=pool, num_classes=num_classes)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    lines: list[str] = []
    out = tmp_path / "out.pth"
    convert_checkpoint(tmp_path / "in.pth", out, verify=False, log=lines.append)
    called = lines[-1].split(", for ")[1]
    assert called.startswith("timm.models.VisionTransformer(") and "num_heads=None" in called
    # Weights do not tell the heads; what they tell must build a model that takes every one of them.
    made = eval(called.replace("num_heads=None", "num_heads=3"), {"timm": timm})  # what a user pastes
    made.load_state_dict(read_checkpoint(out)["state_dict"])
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(made.eval()(images), model.eval()(images))


def test_the_pooler_of_transformers_is_neither_read_nor_filled(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers: not installed")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
    )
    model = transformers.ViTModel(config)
    model.save_pretrained(tmp_path)
    report = convert_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "o.pth", verify=False, log=lambda line: None
    )
    assert set(report.dropped) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert set(load_weights(model, tmp_path / "o.pth").missing) == set(report.dropped)
