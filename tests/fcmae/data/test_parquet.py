"""Parquet files and saved Arrow datasets: the images and classes of the folder they were made from."""

import builtins
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.data import Batch, ImageDataset, open_dataset, pretrain_transform, training_batches
from fcmae.data.decode import UnreadableImageError
from fcmae.errors import InputError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(make_folder) -> Path:
    return make_folder({"cat": 4, "dog": 5})


def table_of(folder: Path) -> Dataset:
    paths = sorted(folder.rglob("*.png"))
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "label": [int(path.parent.name == "dog") for path in paths],
        "number": list(range(len(paths))),
    }
    features = Features(
        {"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "number": Value("int64")}
    )
    return Dataset.from_dict(rows, features=features)


@pytest.fixture
def table(folder: Path) -> Dataset:
    return table_of(folder)


@pytest.fixture
def parquet(table: Dataset, tmp_path: Path) -> Path:
    """Two files of one split."""
    root = tmp_path / "parquet"
    root.mkdir()
    for number in range(2):
        part = table.shard(2, number, contiguous=True)
        part.to_parquet(str(root / f"train-{number:05}-of-00002.parquet"))
    return root


def config_of(root: Path | str, **options) -> DataConfig:
    fields = {"source": "parquet", "image_size": 32, "workers": 0, **options}
    return DataConfig(root=str(root), cache_dir=str(Path(root).parent / "cache"), **fields)


def open_all(root: Path | str, *, labelled: bool = False, **options) -> ImageDataset:
    return open_dataset(config_of(root, **options), split="all", labelled=labelled)


def batches(config: DataConfig, **options) -> list[Batch]:
    dataset = open_dataset(config, split="all", labelled=False)
    options = {"batch_size": 3, "seed": 0, "stop": 6, "workers": 0, **options}
    return list(training_batches(dataset, pretrain_transform(config), **options))


def test_rows_are_the_images_of_the_folder(folder: Path, table: Dataset, parquet: Path, tmp_path: Path):
    files = open_dataset(DataConfig(root=str(folder), image_size=32), split="all", labelled=True)
    table.save_to_disk(str(tmp_path / "saved"))
    for root in (parquet, f"{parquet}/train-*.parquet", tmp_path / "saved"):
        dataset = open_all(root, labelled=True)
        assert len(dataset) == 9 and dataset.labels == files.labels and dataset.classes == ("cat", "dog")
        assert all(torch.equal(dataset.load(index), files.load(index)) for index in range(9))
        assert dataset.name_of(3) == f"{root}[3]" and dataset.containers()
        again = pickle.loads(pickle.dumps(dataset))  # as to a loader process
        assert torch.equal(again.load(8), files.load(8))


def test_batches_are_those_of_the_folder_from_any_start(folder: Path, parquet: Path):
    files = batches(DataConfig(root=str(folder), image_size=32))
    found = batches(config_of(parquet), start=2, workers=2)
    assert len(found) == 4
    assert all(torch.equal(one.images, two.images) for one, two in zip(files[2:], found, strict=True))


def test_splits_with_and_without_a_validation_table(table: Dataset, parquet: Path, tmp_path: Path):
    train = open_dataset(config_of(parquet, val_fraction=0.4), split="train", labelled=True)
    assert 4 < len(train) < 9
    table.select(range(3)).to_parquet(str(tmp_path / "val.parquet"))
    config = config_of(parquet, val_root=str(tmp_path / "val.parquet"))
    val = open_dataset(config, split="val", labelled=True)
    assert len(val) == 3 and val.labels == [0, 0, 0] and val.classes == ("cat", "dog")
    assert len(open_dataset(config, split="train", labelled=True)) == 9
    other = table.cast_column("label", ClassLabel(names=["dog", "cat"]))
    other.to_parquet(str(tmp_path / "val.parquet"))
    with pytest.raises(InputError, match=r"data\.val_root: expected the 2 classes of data\.root"):
        open_dataset(config, split="val", labelled=True)


def test_columns_are_found_or_named(folder: Path, tmp_path: Path):
    content = sorted(folder.rglob("*.png"))[0].read_bytes()
    rows = {
        "scan": [content] * 3,
        "preview": [{"bytes": content, "path": None}] * 3,
        "kind": ["b", "a", "b"],
        "grade": [2, 0, 1],
    }
    root = tmp_path / "other.parquet"
    Dataset.from_dict(rows).to_parquet(str(root))
    with pytest.raises(InputError, match=r"data\.image_column: .*\(scan, preview\), got none"):
        open_all(root)
    with pytest.raises(InputError, match=r"data\.label_column: expected a column of classes, got no label"):
        open_all(root, labelled=True, image_column="scan")
    texts = open_all(root, labelled=True, image_column="scan", label_column="kind")
    assert texts.classes == ("a", "b") and texts.labels == [1, 0, 1]
    numbers = open_all(root, labelled=True, image_column="preview", label_column="grade")
    assert numbers.classes == ("0", "1", "2") and numbers.labels == [2, 0, 1]
    assert torch.equal(texts.load(0), numbers.load(2))
    with pytest.raises(InputError, match=r"data\.image_column: .* got kind"):
        open_all(root, image_column="kind")


def test_bad_rows_train_on_and_are_named(table: Dataset, tmp_path: Path):
    rows = table.cast_column("image", Image(decode=False)).to_dict()
    rows["image"][2] = None
    rows["image"][5] = {"bytes": rows["image"][5]["bytes"][:300], "path": "cut.png"}
    rows["image"][7] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    # Not as Image, whose files would have to be there.
    features = Features({**table.features, "image": {"bytes": Value("binary"), "path": Value("string")}})
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "bad.parquet"))
    config = config_of(tmp_path / "bad.parquet")
    found = batches(config)
    assert all(len(batch.images) == 3 for batch in found)
    root = tmp_path / "bad.parquet"
    named = {line.partition(": ")[0] for batch in found for line in batch.bad}
    assert named == {f"{root}[2]", f"{root}[5]/cut.png", f"{root}[7]/gone.png"}
    assert all("\n" not in line for batch in found for line in batch.bad)
    again = batches(config, start=3, workers=1)
    assert [batch.bad for batch in again] == [batch.bad for batch in found[3:]]
    with pytest.raises(UnreadableImageError, match=r"bad\.parquet\[2\]: the row holds no image"):
        open_all(root).load(2)


def test_deep_grey_images_keep_their_bits(tmp_path: Path):
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((9, 8), 40000, dtype=np.uint16)).save(buffer, "png")
    Dataset.from_dict({"image": [buffer.getvalue()]}).to_parquet(str(tmp_path / "deep.parquet"))
    pixels = open_all(tmp_path / "deep.parquet", in_chans=1).load(0)
    assert pixels.shape == (1, 9, 8) and torch.equal(pixels, torch.full((1, 9, 8), 40000.0) / 65535)


def test_a_changed_file_is_read_anew(table: Dataset, tmp_path: Path):
    root = tmp_path / "part.parquet"
    table.select(range(4)).to_parquet(str(root))
    assert len(open_all(root)) == 4
    table.select(range(6)).to_parquet(str(root))
    assert len(open_all(root)) == 6


def test_paths_are_no_patterns_of_their_own(table: Dataset, tmp_path: Path):
    folder = tmp_path / "é [1]*"
    folder.mkdir()
    table.to_parquet(str(folder / "part[2].parquet"))
    assert len(open_all(folder)) == len(open_all(folder / "part[2].parquet")) == len(table)


def test_refusals(table: Dataset, parquet: Path, tmp_path: Path, monkeypatch):
    def check(root: Path | str, part: str, **options) -> None:
        with pytest.raises(InputError, match=part) as caught:
            open_all(root, **options)
        assert "\n" not in str(caught.value)

    check(tmp_path / "gone", r"data\.root: expected \.parquet files or a dataset saved by save_to_disk")
    DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "dict"))
    check(
        tmp_path / "dict", r"expected one split of a saved dataset, got test, train .* Name one: .*/dict/test"
    )
    missing = table.cast_column("label", Value("int64")).map(lambda row: {"label": -1})
    missing.to_parquet(str(tmp_path / "missing.parquet"))
    check(tmp_path / "missing.parquet", r"expected classes from 0 to .* got -1 in row 0", labelled=True)
    empty = Dataset.from_dict({"image": [b"x"] * 2, "label": ["a", None]})
    empty.to_parquet(str(tmp_path / "empty.parquet"))
    check(tmp_path / "empty.parquet", r"a class in every row, got 1 of 2 without", labelled=True)
    table.select_columns(["label"]).to_parquet(str(tmp_path / "no.parquet"))
    check(tmp_path / "no.parquet", r"data\.image_column: .*\(none\), got none for .* with columns label")
    table.to_parquet(str(parquet / "test-00000-of-00001.parquet"))
    check(parquet, r"expected the files of one split, got test, train in .*parquet/test-\*\.parquet'")
    bad = parquet / "train-00001-of-00002.parquet"
    bad.write_bytes(bad.read_bytes()[:-100])
    check(f"{parquet}/train-*.parquet", rf"expected a table that Arrow can read, got: .*: {bad}\.")
    check(
        parquet, r"data\.image_column, data\.label_column: expected none", source="shards", image_column="a"
    )

    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    check(tmp_path / "no.parquet", r"data\.source: expected the library datasets, .* fcmae\[datasets\]\.")


def test_statistics_and_shards_of_parquet(folder: Path, parquet: Path, tmp_path: Path, cache: Path, capsys):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    options = ["--source", "parquet", "--cache-dir", str(cache)]
    assert cli.main(["data", "stats", str(folder), "--json", str(files[0])]) == 0
    assert cli.main(["data", "stats", str(parquet), *options, "--json", str(files[1])]) == 0
    one, other = (json.loads(file.read_text()) for file in files)
    assert one["mean"] == other["mean"] and one["images"] == other["images"] == 9

    for out, flags in (("with", ["--classes"]), ("without", [])):
        argv = ["data", "shard", str(parquet), str(tmp_path / out), "--format", "png", *options, *flags]
        assert cli.main(argv) == 0
        assert f"MB, {'2' if flags else 'no'} classes, 0 unreadable" in capsys.readouterr().out
    shards = open_dataset(
        DataConfig(source="shards", root=str(tmp_path / "with"), image_size=32), split="all", labelled=True
    )
    table = open_all(parquet, labelled=True)
    assert shards.labels == table.labels and shards.classes == table.classes
    assert all(torch.equal(shards.load(index), table.load(index)) for index in range(9))
