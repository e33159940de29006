"""Small folders of real image files, written anew for each test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_files import write_image


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
