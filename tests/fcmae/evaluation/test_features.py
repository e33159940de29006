"""The cache of features: what hits it, what does not, and files that cannot be read."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from served import served

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.convert import Architecture
from fcmae.errors import InputError
from fcmae.evaluation.encoders import LoadedEncoder, fingerprint
from fcmae.evaluation.features import Embedded, embed_split, open_split

NETWORK = Architecture(backbone="convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))


@pytest.fixture
def encoder() -> LoadedEncoder:
    return _loaded()


def _loaded(change: float = 0.0) -> LoadedEncoder:
    torch.manual_seed(0)
    made = NETWORK.create_encoder().eval()
    with torch.no_grad():
        made.stem.conv.weight[0, 0, 0, 0] += change
    key = fingerprint(made, NETWORK)
    return LoadedEncoder(name="tiny", encoder=made, network=NETWORK, fingerprint=key, file="")


class Extraction(Exception):
    pass


def _embed(encoder: LoadedEncoder, data: DataConfig, cache: Path, **options) -> Embedded:
    split = open_split(data, "val")
    return embed_split(encoder, split, data, cache=cache, batch_size=4, device=torch.device("cpu"), **options)


def _hits(encoder: LoadedEncoder, data: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    def fail(*args):
        raise Extraction

    with monkeypatch.context() as patch:
        patch.setattr(encoder.encoder, "embed", fail)
        try:
            _embed(encoder, data, cache)
        except Extraction:
            return False
    return True


def test_the_second_time_no_image_is_seen(encoder, folder_data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert not _hits(encoder, folder_data, cache, monkeypatch) and not list(cache.glob("*"))
    first = _embed(encoder, folder_data, cache)
    assert _hits(encoder, folder_data, cache, monkeypatch)
    second = _embed(encoder, folder_data, cache)
    assert torch.equal(first.features, second.features) and torch.equal(first.labels, second.labels)
    assert first.features.shape == (6, 8) and first.labels.bincount().tolist() == [2, 2, 2]


def test_what_changes_features_misses(encoder, folder_data, image_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    _embed(encoder, folder_data, cache)
    assert not _hits(_loaded(change=1e-3), folder_data, cache, monkeypatch)
    assert not _hits(encoder, replace(folder_data, image_size=64), cache, monkeypatch)
    assert not _hits(encoder, replace(folder_data, mean=(0.1, 0.2, 0.3)), cache, monkeypatch)
    assert not _hits(encoder, replace(folder_data, val_fraction=0.5), cache, monkeypatch)
    assert _hits(_loaded(), replace(folder_data, workers=1), cache, monkeypatch)
    split = open_split(folder_data, "val")
    os.utime(split.dataset.name_of(0), ns=(1, 1))
    assert not _hits(encoder, folder_data, cache, monkeypatch)


def test_heads_count_though_no_weight_shows_them():
    from fcmae.convert.networks.vit import ViTArchitecture
    from fcmae.models import create_backbone

    network = ViTArchitecture(backbone="vit", depth=1, dim=8, num_heads=None, patch_size=8, grid=(4, 4))
    torch.manual_seed(0)
    encoders = [
        create_backbone("vit_tiny_patch8", depths=(1,), dims=(8,), num_heads=heads) for heads in (1, 2)
    ]
    encoders[1].load_state_dict(encoders[0].state_dict())
    assert fingerprint(encoders[0], network) != fingerprint(encoders[1], network)


@pytest.mark.parametrize("kept_bytes", [0, 40])
def test_damaged_files_are_told_and_replaced(encoder, folder_data, tmp_path, monkeypatch, kept_bytes: int):
    cache = tmp_path / "cache"
    first = _embed(encoder, folder_data, cache)
    (path,) = cache.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:kept_bytes])
    lines: list[str] = []
    again = _embed(encoder, folder_data, cache, log=lines.append)
    assert len(lines) == 1 and lines[0].startswith("cache: ") and lines[0].endswith("Extracting again.")
    assert torch.equal(first.features, again.features)
    assert _hits(encoder, folder_data, cache, monkeypatch)


def test_failed_extraction_leaves_nothing(encoder, folder_data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(
        "fcmae.convert.files.os.replace", lambda *args: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(InputError, match="full"):
        _embed(encoder, folder_data, cache)
    assert list(cache.iterdir()) == []


def test_unreadable_images_are_left_out_in_the_right_place(encoder, folder_data, tmp_path):
    whole = _embed(encoder, folder_data, tmp_path / "before")
    Path(open_split(folder_data, "val").dataset.name_of(1)).write_bytes(b"no image")
    lines: list[str] = []
    found = _embed(encoder, folder_data, tmp_path / "after", log=lines.append)
    assert found.indices.tolist() == [0, 2, 3, 4, 5] and len(lines) == 1 and lines[0].startswith("skipped ")
    torch.testing.assert_close(found.features, whole.features[found.indices])
    assert torch.equal(found.labels, whole.labels[found.indices])
    with pytest.raises(InputError, match=r"data.max_bad_images: expected at most 0 unreadable images, got 1"):
        _embed(encoder, replace(folder_data, max_bad_images=0), tmp_path / "strict", log=lines.append)


def test_broken_features_are_refused(folder_data, tmp_path):
    broken = _loaded(change=float("nan"))
    with pytest.raises(InputError, match="features: expected finite ones of tiny, got NaN"):
        _embed(broken, folder_data, tmp_path)


def test_arrays_have_names_and_a_key_of_their_file(tmp_path):
    splits = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "scans.npy", np.zeros((8, 3, 4, 4), np.uint8))
        np.save(tmp_path / folder / "labels.npy", np.arange(8) % 2)
        root, labels = (str(tmp_path / folder / f"{name}.npy") for name in ("scans", "labels"))
        os.utime(root, ns=(5, 5))
        config = DataConfig(source="arrays", root=root, labels=labels, val_fraction=0.25, image_size=32)
        splits.append(open_split(config, "train"))
        os.utime(root, ns=(6, 6))
        splits.append(open_split(config, "train"))
    assert splits[0].names == splits[2].names and splits[0].names[0].startswith("scans.npy[")
    assert splits[0].key == splits[2].key != splits[1].key


def test_shards_and_parquet_have_a_key_of_their_files(tmp_path, image_folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")

    def key(root: Path | str, source) -> str:
        options = {"val_fraction": 0.25, "cache_dir": str(tmp_path / "cache")}
        config = DataConfig(source=source, root=str(root), image_size=32, workers=0, **options)
        return open_split(config, "val").key

    shards, table = tmp_path / "shards", tmp_path / "table.parquet"
    folder = image_folder()
    assert cli.main(["data", "shard", str(folder), str(shards)]) == 0
    keys = [key(shards, "shards"), key(f"{shards}/shard-{{000000..000000}}.tar", "shards")]
    os.utime(shards / "shard-000000.tar", ns=(1, 1))
    keys.append(key(shards, "shards"))
    with served(shards) as server:
        keys.append(key(server.url, "shards"))
        assert key(server.url, "shards") == keys[-1]

    labels = [path.parent.name for path in sorted(folder.rglob("*.png"))]
    for content in (b"one", b"other"):
        Dataset.from_dict({"image": [content] * len(labels), "label": labels}).to_parquet(str(table))
        keys.append(key(table, "parquet"))
    assert keys[0] == keys[1] and len(set(keys)) == len(keys) - 1
