"""The built-in scans as files, as a user's own images would lie."""

import dataclasses
from pathlib import Path

from torchvision.utils import save_image

from fcmae.config import DataConfig
from fcmae.data.sources import open_dataset


def write_scans(data: DataConfig, folder: Path) -> dict[str, int]:
    """Write the built-in scans as PNGs, `folder`/{train,val}/<class>/<number>.png, and return how many.

    As folders the held-out scans are out of reach of every training.
    """
    counts = {}
    everything = dataclasses.replace(data, labels_per_class=None)
    for split in ("train", "val"):
        dataset = open_dataset(everything, split=split, labelled=True)
        assert dataset.classes is not None and dataset.labels is not None
        for name in dataset.classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for index, label in enumerate(dataset.labels):
            save_image(dataset.load(index), folder / split / dataset.classes[label] / f"{index:04d}.png")
        counts[split] = len(dataset)
    return counts
