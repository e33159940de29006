"""Small folders of coloured noise whose classes differ in colour, and networks of a few thousand weights."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.config import DataConfig


@pytest.fixture(autouse=True)
def _as_users_run() -> Iterator[None]:
    """Without torch's deterministic mode, which the commands do not need; on one thread: tiny networks."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """(name, classes=3, images=8) -> a folder of PNGs, one subfolder a class."""

    def make(name: str = "images", *, classes: int = 3, images: int = 8) -> Path:
        for label in range(classes):
            folder = tmp_path / name / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                noise = np.random.default_rng(100 * label + number).integers(0, 200, (36, 36, 3))
                noise[..., label % 3] += 55
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number:02}.png")
        return tmp_path / name

    return make


@pytest.fixture
def folder_data(image_folder: Callable[..., Path]) -> DataConfig:
    """24 images of 3 classes, a quarter of them held out, 32 px."""
    return DataConfig(
        root=str(image_folder()), val_fraction=0.25, image_size=32, workers=0, crop_scale=(0.9, 1.0)
    )
