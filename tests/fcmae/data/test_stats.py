"""`fcmae data stats`: its numbers against those of all pixels at once, its table, its files, its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.data.stats import Moments

RNG = np.random.default_rng(0)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four RGB pictures of different sizes, a grey one, and one that is none."""
    root = tmp_path / "images"
    for number, size in enumerate([(40, 30), (50, 20), (60, 60), (41, 31)]):
        (root / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 200, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"c{number % 2}" / f"{number}.png")
    Image.fromarray(RNG.integers(0, 256, (9, 8), dtype=np.uint8)).save(root / "grey.bmp")
    (root / "broken.jpg").write_bytes(b"nothing")
    return root


def run(*argv: object) -> int:
    return cli.main(["data", "stats", *map(str, argv)])


@pytest.mark.parametrize("workers", [0, 1])
def test_figures_are_those_of_all_pixels_at_once(mixed: Path, tmp_path: Path, capsys, workers: int):
    found = tmp_path / "stats.json"
    assert run(mixed, "--json", found, "--workers", workers) == 0
    facts = json.loads(found.read_text())
    pixels = []
    for path in [*sorted(mixed.rglob("*.png")), mixed / "grey.bmp"]:
        array = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255
        pixels.append(array.reshape(-1, 3))
    pixels = np.concatenate(pixels)
    # Pixels are decoded as float32: half a unit in its last place.
    assert facts["mean"] == pytest.approx(pixels.mean(0), abs=2**-24)
    assert facts["std"] == pytest.approx(pixels.std(0), abs=2**-24)
    assert facts["images"] == 5 and facts["shorter_side"] == {"min": 8, "median": 30, "max": 60}
    assert facts["height"] == {"min": 9, "median": 41, "max": 60}
    assert [line.partition(": ")[0] for line in facts["bad"]] == [str(mixed / "broken.jpg")]
    assert facts["formats"] == [
        {"format": "PNG", "mode": "RGB", "channels": 3, "images": 4},
        {"format": "BMP", "mode": "L", "channels": 1, "images": 1},
    ]

    printed = capsys.readouterr().out
    assert "5 images read, 1 unreadable, of 6" in printed and "broken.jpg: cannot identify" in printed
    pasted = yaml.safe_load(printed[printed.index("\ndata:") :])["data"]
    config = DataConfig(source="digits", **pasted)
    assert config.mean == pytest.approx(pixels.mean(0), rel=1e-4) and config.in_chans == 3


def test_moments_of_parts_make_those_of_the_whole():
    # A large mean and a small spread: sums of squares in one pass would lose every digit.
    image = 1e6 + torch.rand(2, 30, 40, dtype=torch.float64)
    whole = Moments.of(image)
    parts = Moments.of(image[:, :7])
    parts.add(Moments.of(image[:, 7:9]))
    parts.add(Moments.of(image[:, 9:]))
    assert parts.count == whole.count == 1200
    assert torch.allclose(parts.mean, whole.mean, rtol=1e-15, atol=0)
    assert torch.allclose(parts.std, image.flatten(1).std(dim=1, correction=0), rtol=1e-9, atol=0)


def test_satellite_tiles(tmp_path: Path, capsys):
    tiles = RNG.integers(0, 10000, (5, 12, 18, 19), dtype=np.uint16)
    np.save(tmp_path / "tiles.npy", tiles)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, tile in enumerate(tiles):
        np.save(folder / f"{number}.npy", tile)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    assert run(tmp_path / "tiles.npy", "--source", "arrays", "--in-chans", 12, "--json", files[0]) == 0
    assert run(folder, "--json", files[1]) == 0  # 12 channels are found
    one, other = (json.loads(path.read_text()) for path in files)
    assert one["mean"] == other["mean"] == pytest.approx(tiles.mean((0, 2, 3)) / 65535)
    assert other["formats"] == [{"format": "NPY", "mode": "uint16", "channels": 12, "images": 5}]
    assert "in_chans: 12" in capsys.readouterr().out


def test_picture_and_sample(mixed: Path, tmp_path: Path, capsys):
    assert run(mixed, "--out", tmp_path / "new" / "sizes.png", "--sample", 3) == 0
    with Image.open(tmp_path / "new" / "sizes.png") as picture:
        assert picture.width > 400 and np.asarray(picture.convert("L")).std() > 5
    assert "2 images read, 1 unreadable, of 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["gone"], "data.root: expected a folder of images, got no such folder: gone"),
        (["gone", "--sample", "0"], "--sample: expected at least 1, got 0."),
        (["gone", "--workers", "-1"], "--workers: expected 0 or more, got -1."),
        (["gone.npy", "--source", "arrays"], "data.root: expected a .npy file"),
        ([], "fcmae: data stats: the following arguments are required: DIR"),
    ],
)
def test_refusals(argv: list[str], part: str, capsys):
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


def test_a_folder_of_nothing_readable(tmp_path: Path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert run(tmp_path) == 2
    assert "expected a readable image, got 1 unreadable; the first is" in capsys.readouterr().err


def test_the_command_names_its_parts(capsys):
    assert cli.main(["data"]) == 2
    assert "data: expected stats" in capsys.readouterr().err
    assert cli.main(["data", "--help"]) == 0
    assert "fcmae data stats --help" in capsys.readouterr().out
