"""Small folders of real image files, written anew for each test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_image(path: Path, seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """An RGB picture of noise, (width, height) `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[dict[str, int]], Path]:
    """make_folder({"cat": 3, "dog": 2}) -> folder with that many PNGs a subfolder; "" is the folder."""

    def make(counts: dict[str, int], name: str = "images") -> Path:
        root = tmp_path / name
        root.mkdir()
        seed = 0
        for subfolder, count in counts.items():
            (root / subfolder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed += 1
                write_image(root / subfolder / f"{number:02}.png", seed)
        return root

    return make
