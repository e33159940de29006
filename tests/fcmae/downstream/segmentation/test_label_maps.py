"""Folders of images and label maps: what their values mean, and what becomes of broken ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.config import SegmentDataConfig
from fcmae.data import UnreadableImageError
from fcmae.downstream.segmentation.dataset import IGNORED, open_label_maps, read_label_map
from fcmae.errors import InputError


def write_pair(folder: Path, name: str, values: np.ndarray, *, size: tuple[int, int] | None = None) -> None:
    """An image and its label map, at folder/images/name.jpg and folder/labels/name.png."""
    image, labels = folder / "images" / f"{name}.jpg", folder / "labels" / f"{name}.png"
    for path in (image, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size or values.shape
    Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8)).save(image)
    Image.fromarray(values).save(labels)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., SegmentDataConfig]:
    def make(**options: object) -> SegmentDataConfig:
        folders = {"root": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
        plain = {"source": "folder", "num_classes": 3, "val_fraction": 0.0}
        return SegmentDataConfig(**{**plain, **folders, **options})

    return make


VALUES = np.array([[0, 1, 2], [255, 2, 0]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 1, 2], [-1, 2, 0]]),
        ({"reduce_zero_label": True}, [[-1, 0, 1], [-1, 1, -1]]),
        ({"ignore_index": 2, "num_classes": 300}, [[0, 1, -1], [255, -1, 0]]),
    ],
)
def test_values_are_classes(
    tmp_path: Path, config: Callable[..., SegmentDataConfig], options: dict, expected: list
) -> None:
    write_pair(tmp_path, "a", VALUES)
    found = read_label_map(str(tmp_path / "labels/a.png"), config(**options), size=(2, 3))
    assert found.dtype == torch.int64 and found.tolist() == expected


def test_palettes_and_16_bits_are_numbers(tmp_path: Path, config: Callable[..., SegmentDataConfig]) -> None:
    palette = Image.fromarray(VALUES).convert("P")
    palette.putdata(VALUES.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    found = read_label_map(str(tmp_path / "palette.png"), config(), size=(2, 3))
    assert found.tolist() == [[0, 1, 2], [IGNORED, 2, 0]]
    Image.fromarray(np.array([[0, 700]], dtype=np.uint16)).save(tmp_path / "wide.png")
    wide = config(num_classes=701, ignore_index=65535)
    assert read_label_map(str(tmp_path / "wide.png"), wide, size=(1, 2)).tolist() == [[0, 700]]


def test_pairs_by_name_in_subfolders(tmp_path: Path, config: Callable[..., SegmentDataConfig]) -> None:
    for name in ("b", "x/a", "x/y/c"):
        write_pair(tmp_path, name, VALUES)
    dataset, left_out = open_label_maps(config(), split="train")
    names = [Path(dataset.name_of(index)).relative_to(tmp_path / "images") for index in range(3)]
    assert [str(name) for name in names] == ["b.jpg", "x/a.jpg", "x/y/c.jpg"] and left_out == []
    example = dataset.load(1)
    assert example.image.shape == (3, 2, 3) and example.image.dtype == torch.uint8
    assert example.labels.shape == example.size == (2, 3) and example.number == 1


def test_split_is_fixed_and_disjoint(tmp_path: Path, config: Callable[..., SegmentDataConfig]) -> None:
    for number in range(10):
        write_pair(tmp_path, f"{number}", VALUES)
    parts = [open_label_maps(config(val_fraction=0.3), split=split)[0] for split in ("train", "val")]
    names = [{dataset.name_of(index) for index in range(len(dataset))} for dataset in parts]
    assert len(names[0]) == 7 and len(names[1]) == 3 and not names[0] & names[1]
    whole = [open_label_maps(config(), split=split)[0] for split in ("train", "val")]
    assert [len(dataset) for dataset in whole] == [10, 10]
    with pytest.raises(InputError, match=r"data\.val_fraction: expected a share that holds out at least one"):
        open_label_maps(config(val_fraction=0.01), split="val")


def broken_folder(tmp_path: Path) -> None:
    write_pair(tmp_path, "good", VALUES)
    write_pair(tmp_path, "size", VALUES, size=(3, 3))
    write_pair(tmp_path, "class", np.array([[0, 3, 9]], dtype=np.uint8))
    write_pair(tmp_path, "colour", np.zeros((2, 3, 3), dtype=np.uint8), size=(2, 3))
    write_pair(tmp_path, "missing", VALUES)
    (tmp_path / "labels/missing.png").unlink()
    write_pair(tmp_path, "damaged", VALUES)
    (tmp_path / "labels/damaged.png").write_bytes(b"\x89PNG\r\n")


BROKEN = {
    "size": "expected a label map of 3 x 3 pixels, as its image, got 3 x 2",
    "class": "expected values from 0 to 2 or 255, got 3, 9",
    "colour": "expected a label map of one channel, got an image of mode RGB",
    "damaged": "expected a label map, got cannot identify image file",
}


def test_broken_label_maps_refuse_with_a_line(
    tmp_path: Path, config: Callable[..., SegmentDataConfig]
) -> None:
    broken_folder(tmp_path)
    with pytest.raises(
        InputError, match=r"expected a label map, got no such file: .*missing\.png\. Correct it"
    ):
        open_label_maps(config(), split="train")
    (tmp_path / "images/missing.jpg").unlink()
    dataset, _ = open_label_maps(config(), split="train")
    for index in range(len(dataset)):
        name = Path(dataset.name_of(index)).stem
        if name == "good":
            dataset.load(index)
            continue
        with pytest.raises(InputError) as caught:
            dataset.load(index)
        message = str(caught.value)
        assert BROKEN[name] in message and f"labels/{name}.png" in message and "\n" not in message
        assert "--data.broken=skip" in message


def test_broken_label_maps_are_skipped_and_counted(
    tmp_path: Path, config: Callable[..., SegmentDataConfig]
) -> None:
    broken_folder(tmp_path)
    dataset, left_out = open_label_maps(config(broken="skip"), split="train")
    assert len(left_out) == 1 and "missing.png: expected a label map, got no such file" in left_out[0]
    found = {}
    for index in range(len(dataset)):
        try:
            dataset.load(index)
        except UnreadableImageError as error:
            found[Path(dataset.name_of(index)).stem] = str(error)
    assert set(found) == set(BROKEN)
    for name, message in found.items():
        assert BROKEN[name] in message


def test_values_of_a_shifted_map_are_named_as_they_are(
    tmp_path: Path, config: Callable[..., SegmentDataConfig]
) -> None:
    write_pair(tmp_path, "a", np.array([[1, 3, 4]], dtype=np.uint8))
    with pytest.raises(UnreadableImageError, match=r"expected values from 1 to 3 or 255, got 4$"):
        read_label_map(str(tmp_path / "labels/a.png"), config(reduce_zero_label=True), size=(1, 3))


def test_folders_without_any_pair(tmp_path: Path, config: Callable[..., SegmentDataConfig]) -> None:
    write_pair(tmp_path, "a", VALUES)
    (tmp_path / "labels/a.png").rename(tmp_path / "labels/b.png")
    with pytest.raises(InputError, match=r"data\.labels: expected a label map NAME\.png for an image"):
        open_label_maps(config(broken="skip"), split="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "data.root: expected a folder with data.source=folder, got none"),
        ({"source": "samples"}, "data.root: expected none with data.source=samples, got "),
        ({"val_root": "x"}, "data.val_labels: expected a folder with data.val_root"),
        ({"num_classes": 1}, "data.num_classes: expected at least 2"),
        ({"resize": (512, 256)}, "data.resize: expected \\[shorter, longer\\] side"),
        ({"scale": (0.0, 1.0)}, "data.scale: expected 0 < low <= high"),
        ({"max_class_share": 0.0}, "data.max_class_share: expected a value in \\(0, 1\\]"),
        ({"image_size": 0}, "data.image_size: expected positive sides"),
    ],
)
def test_refused_settings(config: Callable[..., SegmentDataConfig], options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**options)


def test_samples_are_a_set(config: Callable[..., SegmentDataConfig]) -> None:
    for channels in (1, 3):
        data = SegmentDataConfig(in_chans=channels, val_fraction=0.25)
        dataset, _ = open_label_maps(data, split="train")
        assert len(dataset) == 9 and len(open_label_maps(data, split="val")[0]) == 3
        example = dataset.load(0)
        assert example.image.shape == (channels, *example.size) and example.image.min() >= 0
        assert set(example.labels.unique().tolist()) <= set(range(4))
