"""What is found in folders and in the digits, how it is split, and what each mistake is answered with."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.config import DataConfig
from fcmae.data import decode_image, open_dataset
from fcmae.data.sources.splits import hold_out
from fcmae.errors import InputError


def folder_config(root: Path, **options) -> DataConfig:
    return DataConfig(root=str(root), image_size=32, **options)


def names(dataset) -> list[str]:
    return [dataset.name_of(index) for index in range(len(dataset))]


def test_nested_and_flat_files_sorted_without_hidden_ones(make_folder):
    root = make_folder({"": 2, "b/deep/er": 1, "a": 1, ".hidden": 1})
    (root / "notes.txt").write_text("not an image")
    (root / ".thumb.png").write_bytes(b"")
    (root / "LOUD.PNG").write_bytes((root / "00.png").read_bytes())
    dataset = open_dataset(folder_config(root), split="all", labelled=False)
    found = [os.path.relpath(name, root) for name in names(dataset)]
    assert found == ["00.png", "01.png", "LOUD.PNG", "a/00.png", "b/deep/er/00.png"]
    assert dataset.labels is None and dataset.classes is None
    assert dataset.load(0).shape == (3, 36, 40)


def test_links_are_followed_once(make_folder):
    root = make_folder({"a": 2})
    other = make_folder({"": 3}, name="elsewhere")
    (root / "b").symlink_to(other)
    (root / "a" / "loop").symlink_to(root)
    assert len(open_dataset(folder_config(root), split="all", labelled=False)) == 5


def test_subfolders_are_classes(make_folder):
    root = make_folder({"b": 1, "a": 2, "a/nested": 1, "a-": 1})
    dataset = open_dataset(folder_config(root), split="all", labelled=True)
    assert dataset.classes == ("a", "a-", "b")
    found = [os.path.relpath(name, root) for name in names(dataset)]
    pairs = dict(zip(found, dataset.labels, strict=True))
    assert pairs == {"a/00.png": 0, "a/01.png": 0, "a/nested/00.png": 0, "a-/00.png": 1, "b/00.png": 2}


def test_subset_keeps_names_labels_and_pixels(make_folder):
    dataset = open_dataset(folder_config(make_folder({"a": 2, "b": 2})), split="all", labelled=True)
    subset = dataset.subset([3, 0]).subset([1, 0, 0])
    assert names(subset) == [dataset.name_of(index) for index in (0, 3, 3)]
    assert subset.labels == [0, 1, 1] and subset.classes == ("a", "b") and len(subset) == 3
    assert torch.equal(subset.load(1), dataset.load(3))


def test_split_is_disjoint_complete_stratified_and_fixed(make_folder):
    config = folder_config(make_folder({"a": 20, "b": 10, "c": 1}), val_fraction=0.2)
    train = open_dataset(config, split="train", labelled=True)
    val = open_dataset(config, split="val", labelled=True)
    everything = open_dataset(config, split="all", labelled=True)
    assert sorted(names(train) + names(val)) == names(everything)
    assert [val.labels.count(label) for label in range(3)] == [4, 2, 0]
    assert names(open_dataset(config, split="val", labelled=True)) == names(val)
    assert val.labels == sorted(val.labels) and names(val) != names(everything)[:4] + names(everything)[20:22]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_hold_out_counts(fraction: float):
    labels = [0] * 30 + [1] * 31 + [2]
    train, val = hold_out(labels, val_fraction=fraction)
    assert sorted(train + val) == list(range(62))
    assert {labels[index] for index in train} == {0, 1, 2}
    assert abs(len(val) - fraction * 62) <= 1.5
    for label in (0, 1):
        assert abs(sum(labels[index] == label for index in val) - fraction * 30) <= 1.5


def test_labels_per_class_limits_training_only(make_folder):
    config = folder_config(make_folder({"a": 10, "b": 10}), val_fraction=0.2, labels_per_class=3)
    train = open_dataset(config, split="train", labelled=True)
    assert train.labels == [0, 0, 0, 1, 1, 1]
    val = open_dataset(config, split="val", labelled=True)
    assert len(val) == 4 and not set(names(val)) & set(names(train))
    assert names(open_dataset(config, split="train", labelled=True)) == names(train)


def test_val_root(make_folder):
    root = make_folder({"a": 3, "b": 2})
    val_root = make_folder({"b": 2}, name="val")
    config = folder_config(root, val_root=str(val_root))
    assert len(open_dataset(config, split="train", labelled=True)) == 5
    val = open_dataset(config, split="val", labelled=True)
    assert val.labels == [1, 1] and val.classes == ("a", "b")  # numbered as in root

    (val_root / "b").rename(val_root / "zebra")
    with pytest.raises(InputError, match=r"data\.val_root: expected the classes of data\.root, got 'zebra'"):
        open_dataset(config, split="val", labelled=True)


def check_message(config: DataConfig, *parts: str, split="all", labelled=False) -> None:
    with pytest.raises(InputError) as caught:
        open_dataset(config, split=split, labelled=labelled)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_folder_mistakes(make_folder, tmp_path: Path):
    root = make_folder({"": 2})
    check_message(folder_config(tmp_path / "gone"), "data.root", "no such folder", "gone")
    check_message(folder_config(root / "00.png"), "data.root", "a file")
    empty = make_folder({"sub": 0}, name="empty")
    check_message(folder_config(empty), "data.root", ".jpg", ".npy", "got none", str(empty))
    check_message(folder_config(root, val_root=str(empty)), "data.val_root", "got none", split="val")


def test_class_mistakes(make_folder):
    flat = make_folder({"": 2}, name="flat")
    check_message(folder_config(flat), "one subfolder", "2 images", "00.png", labelled=True)
    mixed = make_folder({"": 1, "a": 2}, name="mixed")
    check_message(folder_config(mixed), "1 images outside of any", "00.png", labelled=True)
    hollow = make_folder({"a": 2, "b": 0}, name="hollow")
    check_message(folder_config(hollow), "got none in 'b'", labelled=True)


def test_split_mistakes(make_folder):
    root = make_folder({"a": 3, "b": 1})
    check_message(folder_config(root, val_fraction=0.0), "val_fraction", "got 0", split="val", labelled=True)
    check_message(folder_config(root, val_fraction=0.1), "of 4 images", split="val", labelled=True)
    config = folder_config(root, labels_per_class=2)
    check_message(config, "labels_per_class", "1 training images of class 'b'", split="train", labelled=True)
    for options in ({"labels_per_class": 0}, {"crop_scale": (0.0, 1.0)}, {"crop_ratio": (2.0, 1.0)}):
        with pytest.raises(InputError, match=next(iter(options))):
            folder_config(root, **options)


def test_digits():
    config = DataConfig(source="digits", image_size=(32, 48), in_chans=3, labels_per_class=10)
    everything = open_dataset(config, split="all", labelled=False)
    assert len(everything) == 1797 and everything.labels is None
    image = everything.load(7)
    assert image.shape == (3, 32, 48) and image.dtype == torch.float32
    assert torch.equal(image[0], image[2])
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.1
    assert everything.name_of(7) == "digits[7]"

    train = open_dataset(config, split="train", labelled=True)
    val = open_dataset(config, split="val", labelled=True)
    assert train.classes == tuple("0123456789")
    assert train.labels is not None and np.bincount(train.labels).tolist() == [10] * 10
    assert len(val) == 180 and not set(names(train)) & set(names(val))

    many = DataConfig(source="digits", image_size=16, in_chans=12)
    assert open_dataset(many, split="all", labelled=False).load(0).shape == (12, 16, 16)


def test_enlarged_digits_are_the_scans():
    from sklearn.datasets import load_digits

    dataset = open_dataset(DataConfig(source="digits", image_size=8, in_chans=1), split="all", labelled=True)
    digits = load_digits()
    assert torch.allclose(dataset.load(5)[0], torch.from_numpy(digits.images[5] / 16).float())
    assert dataset.labels == digits.target.tolist()


def test_jpegs_of_a_folder_stay_large_enough_for_the_smallest_crop(tmp_path: Path):
    Image.new("RGB", (1200, 1000)).save(tmp_path / "a.jpg")

    def side(**options) -> int:
        config = folder_config(tmp_path, **options)
        return min(open_dataset(config, split="all", labelled=False).load(0).shape[1:])

    # 32 / sqrt(0.2 * 0.75) = 83 pixels: 125 of 1000 are left. A crop of 0.01 wants 370.
    assert side() == 125
    assert side(crop_scale=(0.01, 1.0)) == 500


def test_images_of_8_bits_stay_bytes(tmp_path: Path):
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(tmp_path / "a.png")
    Image.new("L", (5, 4), 9).save(tmp_path / "b.png")
    Image.new("RGBA", (5, 4), (10, 20, 30, 40)).save(tmp_path / "c.png")
    np.save(tmp_path / "d.npy", np.zeros((4, 5, 3), dtype=np.uint16))
    np.save(tmp_path / "e.npy", np.full((4, 5, 1), 7, dtype=np.uint8))
    for in_chans in (1, 3):
        dataset = open_dataset(folder_config(tmp_path, in_chans=in_chans), split="all", labelled=False)
        images = [dataset.load(index) for index in range(5)]
        # What must be computed, grey of colour and the layer on white, is not rounded to bytes again.
        first = torch.uint8 if in_chans == 3 else torch.float32
        kinds = [image.dtype for image in images]
        assert kinds == [first, torch.uint8, torch.float32, torch.float32, torch.uint8]
        for index, image in enumerate(images):
            unit = image.float() / 255 if image.dtype == torch.uint8 else image
            assert torch.equal(unit, decode_image(dataset.name_of(index), in_chans=in_chans))
