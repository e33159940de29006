"""The comparison of methods, end to end at a toy size, and its page."""

import importlib.util
from pathlib import Path

import pytest
import torch

from fcmae.bench.mask_ratios import measure_mask_ratios, visible_sites
from fcmae.evaluation.frozen.probe import probe_accuracy
from fcmae.models import create_backbone

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("compare_methods", ROOT / "scripts" / "compare_methods.py")
assert SPEC is not None and SPEC.loader is not None
compare_methods = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compare_methods)

TINY = ("--data.image_size=64", "--train.batch_size=4")


@pytest.fixture(autouse=True)
def _as_users_run():
    torch.use_deterministic_algorithms(False)


def test_two_arms_end_in_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder and MSN, each for the twelve steps that are the least."""
    convnet = ("--model.depths=[1,1,1,1]", "--model.dims=[8,8,8,8]", "--model.stem_stride=2")
    arms = {
        "FCMAE": ("fcmae/convnextv2_atto_demo.yaml", *TINY, *convnet, "--model.patch_size=16"),
        "MSN, collapsing": (
            *("msn/convnextv2_digits.yaml", "--train.batch_size=4", *compare_methods.COLLAPSE),
            *("--model.prototypes=8", "--model.hidden_dim=16"),
        ),
    }
    first = compare_methods.load_config(
        compare_methods.PretrainConfig, ["--config", str(compare_methods.CONFIGS / arms["FCMAE"][0]), *TINY]
    )
    monkeypatch.setattr(compare_methods, "data_config", lambda: first.data)
    page = compare_methods.run_comparison(arms, seconds=0.0, out=tmp_path / "out", bench_steps=1)
    text = page.read_text()
    assert all(f"<td>{name}</td>" in text for name in arms)
    assert "70% hidden" in text and "http" not in text
    assert (tmp_path / "out" / "fcmae" / "checkpoints" / "newest.pt").exists()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7])
def test_sites_of_a_mask_ratio(ratio: float) -> None:
    encoder = create_backbone("convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))
    sites = visible_sites(encoder, batch_size=2, image_size=(128, 160), patch_size=32, mask_ratio=ratio)
    assert sites.num_sites == 2 * int(20 * (1 - ratio)) * 64


def test_every_encoder_is_measured_at_every_ratio() -> None:
    encoders = {
        "conv": (create_backbone("convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)), 32),
        "vit": (create_backbone("vit_tiny_patch16", depths=(1,), dims=(12,), num_heads=3), 16),
    }
    times = measure_mask_ratios(encoders, ratios=(0.0, 0.5), batch_size=1, image_size=(64, 64), steps=1)
    assert {name: len(values) for name, values in times.items()} == {"conv": 2, "vit": 2}
    assert all(value > 0 for values in times.values() for value in values)


def test_probe_tells_separate_classes_apart_and_shuffled_ones_not() -> None:
    labels = torch.arange(200) % 4
    features = torch.eye(4)[labels] + 0.1 * torch.randn(200, 4)
    parts = features[:100], labels[:100], features[100:], labels[100:]
    assert probe_accuracy(*parts) == 1.0
    shuffled = labels[torch.randperm(200)]
    assert probe_accuracy(features[:100], shuffled[:100], features[100:], shuffled[100:]) < 0.5
