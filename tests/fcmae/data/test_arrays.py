"""Images in one `.npy` file: axes, types, labels, what reading costs, and the answers to mistakes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fcmae.config import DataConfig
from fcmae.data import ArrayDataset, open_dataset, pretrain_transform, training_batches
from fcmae.errors import InputError

RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 65536, (6, 12, 40, 36), dtype=np.uint16)


def save(folder: Path, array: np.ndarray, name: str = "tiles.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


def open_all(path: Path, *, labelled: bool = False, **options):
    config = DataConfig(
        **{"source": "arrays", "root": str(path), "image_size": 32, "in_chans": 12, **options}
    )
    return open_dataset(config, split="all", labelled=labelled)


@pytest.mark.parametrize("channel_axis", ["auto", "first", "last"])
def test_channels_at_either_end_are_the_same_images(tmp_path: Path, channel_axis: str):
    first = channel_axis != "last"
    path = save(tmp_path, TILES if first else TILES.transpose(0, 2, 3, 1))
    dataset = open_all(path, channel_axis=channel_axis)
    assert len(dataset) == 6 and dataset.name_of(4) == f"{path}[4]" and dataset.labels is None
    assert torch.equal(dataset.load(4), torch.from_numpy(TILES[4].astype(np.float32) / 65535))


@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint8", 255), (">u2", 65535), ("uint16", 65535), ("int16", 32767), ("float32", 1)]
)
def test_the_type_decides_the_scale(tmp_path: Path, dtype: str, scale: float):
    values = RNG.integers(0, 2 if scale == 1 else 200, (2, 9, 8, 12)).astype(dtype)
    image = open_all(save(tmp_path, values)).load(1)
    if dtype == "uint8":  # stays so until it is cropped
        assert image.dtype == torch.uint8
        image = image / 255
    assert torch.allclose(image, torch.from_numpy(values[1].transpose(2, 0, 1).astype(np.float32)) / scale)


def test_grey_becomes_colour_and_values_out_of_range_are_named(tmp_path: Path):
    values = np.zeros((3, 8, 8), dtype=np.float32)
    values[1, 0, 0] = 7
    path = save(tmp_path, values)
    dataset = open_all(path, in_chans=3)
    assert dataset.load(0).shape == (3, 8, 8)
    config = DataConfig(source="arrays", root=str(path), image_size=8)
    (batch,) = training_batches(dataset, pretrain_transform(config), batch_size=3, seed=0, stop=1, workers=0)
    assert batch.images.shape == (3, 3, 8, 8) and len(batch.bad) == 1
    assert batch.bad[0].startswith(f"{path}[1]: expected floats in [0, 1]")


def test_labels_make_classes_and_splits(tmp_path: Path):
    labels = save(tmp_path, np.array([2, 0, 0, 2, 1, 1]), "labels.npy")
    dataset = open_all(save(tmp_path, TILES), labelled=True, labels=str(labels))
    assert dataset.labels == [2, 0, 0, 2, 1, 1] and dataset.classes == ("0", "1", "2")


def test_a_loader_process_gets_the_path_and_not_the_pixels(tmp_path: Path):
    dataset = open_all(save(tmp_path, TILES))
    assert len(pickle.dumps(dataset)) < 1000 < TILES.nbytes
    (here,) = training_batches(dataset, unchanged, batch_size=4, seed=0, stop=1, workers=0)
    (there,) = training_batches(dataset, unchanged, batch_size=4, seed=0, stop=1, workers=1)
    assert torch.equal(here.images, there.images)


def unchanged(image: torch.Tensor) -> torch.Tensor:
    return image


def test_an_array_larger_than_the_address_limit_is_read_piece_by_piece(tmp_path: Path):
    # 64 GiB on paper: a file with a hole. Reading it whole would end this process.
    path = tmp_path / "huge.npy"
    shape = (1 << 20, 16, 16, 128)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)[-1] = 65535
    dataset = open_all(path, in_chans=128)
    assert len(dataset) == 1 << 20 and path.stat().st_size > 2**36
    assert dataset.load(len(dataset) - 1).min() == 1 and dataset.load(0).max() == 0


def test_an_array_in_memory():
    dataset = ArrayDataset(TILES, in_chans=12, channels_first=True, labels=np.arange(6))
    assert dataset.name_of(1) == "array[1]" and dataset.load(0).shape == (12, 40, 36)


@pytest.mark.parametrize(
    ("array", "options", "part"),
    [
        (TILES[:, :, :12], {}, r"data\.channel_axis: expected first or last .* \(6, 12, 12, 36\)"),
        (
            TILES,
            {"in_chans": 4},
            r"data\.in_chans: expected images of 4 channels, got 12 .* --data\.in_chans=12",
        ),
        (TILES, {"channel_axis": "last"}, r"expected images of 12 channels, got 36"),
        (TILES[0, 0], {}, r"data\.root: expected an array \[N, C, H, W\].* got shape \(40, 36\)"),
        (TILES[:0], {}, r"got shape \(0, 12, 40, 36\)"),
        (TILES.astype(np.int64), {}, r"expected an array of uint8, uint16, int16 or float .* got int64"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, options: dict, part: str):
    if array.ndim == 4 and array.shape[2] == 12:
        array = array.transpose(0, 2, 3, 1).reshape(6, 12, 36, 12)
        part = part.replace("12, 12, 36", "12, 36, 12")
    check(save(tmp_path, array), part, **options)


def test_other_mistakes(tmp_path: Path):
    check(tmp_path / "gone.npy", r"data\.root: expected a \.npy file, got: No such file")
    check(tmp_path, "got: Is a directory")
    (tmp_path / "text.npy").write_text("no array")
    check(tmp_path / "text.npy", r"expected a \.npy file, got: the magic string is not correct")
    whole = save(tmp_path, TILES).read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[: len(whole) // 2])
    check(tmp_path / "short.npy", r"expected a \.npy file, got: .*greater than file size")
    np.savez(tmp_path / "many.npz", TILES)
    check(tmp_path / "many.npz", r"expected a \.npy file, got: the magic string is not correct")
    path = save(tmp_path, TILES)
    check(path, r"data\.labels: expected a \.npy file of the classes of 6 images, got none", labelled=True)
    for labels in (np.zeros(5, int), np.zeros(6), np.full(6, -1)):
        other = save(tmp_path, labels, "labels.npy")
        check(path, r"data\.labels: expected 6 class numbers", labelled=True, labels=str(other))
    for options, part in (
        ({"root": None}, r"data\.root: expected a \.npy file, got none. Add --data\.root FILE"),
        ({"val_root": "v"}, r"data\.val_root: expected none with data\.source=arrays"),
        ({"source": "folder", "labels": "l"}, r"data\.labels: expected none with data\.source=folder"),
    ):
        check(path, part, **options)


def check(path: Path, part: str, **options) -> None:
    with pytest.raises(InputError, match=part) as caught:
        open_all(path, **options)
    assert "\n" not in str(caught.value)
