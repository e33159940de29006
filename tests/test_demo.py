"""The demo from its first stage to its page, on a network and a budget too small to learn anything."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

from fcmae.config import (
    ClassifierConfig,
    DataConfig,
    FCMAEConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    PretrainConfig,
    PretrainTrainConfig,
)
from fcmae.data import write_scans
from fcmae.report.samples import read_events

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
assert SPEC is not None and SPEC.loader is not None
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)

DATA = DataConfig(
    source="digits", image_size=64, in_chans=1, val_fraction=0.05, labels_per_class=1, workers=0
)


def test_scans_are_written_once_each_by_split_and_class(tmp_path: Path) -> None:
    counts = write_scans(DATA, tmp_path)
    files = {split: list((tmp_path / split).rglob("*.png")) for split in ("train", "val")}
    assert {split: len(found) for split, found in files.items()} == counts
    assert sum(counts.values()) == 1797 and abs(counts["val"] - 90) <= 5
    assert {path.parent.name for path in files["val"]} == set("0123456789")
    with Image.open(files["val"][0]) as image:
        assert image.size == (64, 64)


def test_arms_differ_in_their_weights_only(tmp_path: Path) -> None:
    config = demo.with_folders(FinetuneConfig(data=DATA), tmp_path / "scans", tmp_path / "run")
    pretrained = demo.with_seed(config, 1, tmp_path / "weights.safetensors")
    random = demo.with_seed(config, 1, None)
    assert random.model.weights is None and pretrained.model.weights is not None
    assert dataclasses.replace(pretrained, model=random.model) == random
    assert pretrained.data.root != pretrained.data.val_root


@pytest.mark.slow
def test_the_demo_starts_anew_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretraining = PretrainConfig(
        data=DATA,
        model=FCMAEConfig(backbone="convnextv2_atto", decoder_dim=8),
        train=PretrainTrainConfig(steps=2, batch_size=4, log_every=1, warmup_steps=0),
    )
    finetuning = FinetuneConfig(
        data=DATA,
        model=ClassifierConfig(backbone="convnextv2_atto", head_init_scale=1.0),
        train=FinetuneTrainConfig(steps=1, batch_size=4, warmup_steps=0),
    )
    left_over = tmp_path / "finetune_random" / "seed_0" / "checkpoints" / "step_00000009.pt"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    page = demo.run_demo(pretraining, finetuning, out=tmp_path, seeds=(0, 1), bench_steps=1)

    assert not left_over.exists()
    assert str(page.resolve()) in capsys.readouterr().out
    assert [entry["step"] for entry in read_events(tmp_path / "pretrain", "train")] == [1, 2]
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://", text)
    assert text.count("<img") == 3 * 8 and text.count("<svg") == 3
    for expected in ("Pretraining", "From random", "masked dense", "head_init_scale: 1.0", "mask_ratio: 0.6"):
        assert expected in text
    arms = [
        [
            read_events(tmp_path / f"finetune_{arm}" / f"seed_{seed}", "eval")[-1]["accuracy"]
            for seed in (0, 1)
        ]
        for arm in ("pretrained", "random")
    ]
    for accuracy in (accuracy for values in arms for accuracy in values):
        assert f'data-value="{100 * accuracy!r}"' in text
