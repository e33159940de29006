"""A dozen annotated photographs that need no download: shapes cut out of one photograph, laid on another."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from fcmae.arguments import OptionParser
from fcmae.config import require
from fcmae.errors import InputError

CLASSES = ("background", "disc", "square", "triangle")
"""The values 0 to 3 of the label maps; instances are of the last three."""
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # in scikit-learn, CC BY
_HEIGHTS, _WIDTHS = (160, 208), (192, 256)
_OBJECTS = (2, 4)
_LEAST_VISIBLE = 0.4
"""Share of a shape that later ones must leave visible; it is drawn elsewhere otherwise."""


class Sample(NamedTuple):
    """An annotated photograph."""

    image: np.ndarray
    """uint8 [H, W, 3]."""
    labels: np.ndarray
    """uint8 [H, W], values of CLASSES."""
    instances: list[tuple[int, np.ndarray]]
    """(class, its visible pixels as bool [H, W]) of each shape, not overlapping."""


def draw_samples(count: int = 12, *, seed: int = 0) -> list[Sample]:
    """`count` photographs of different sizes, each a function of (seed, its number).

    Backgrounds are crops of scikit-learn's two photographs; what a shape shows is a crop of the other one.
    """
    return [_draw(np.random.default_rng((seed, number))) for number in range(count)]


def write_samples(folder: str | Path, count: int = 12, *, seed: int = 0) -> None:
    """Write samples as a user's own would lie: images/*.jpg, labels/*.png and annotations.json (COCO's).

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(draw_samples(count, seed=seed), start=1):
            name, (height, width) = f"{number:04d}.jpg", sample.labels.shape
            Image.fromarray(sample.image).save(folder / "images" / name, quality=95)
            Image.fromarray(sample.labels).save(folder / "labels" / f"{number:04d}.png")
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            annotations += [
                {"id": len(annotations) + place, "image_id": number, **_annotation(label, mask)}
                for place, (label, mask) in enumerate(sample.instances, start=1)
            ]
        categories = [{"id": label, "name": CLASSES[label]} for label in range(1, len(CLASSES))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"samples: expected to write into {folder}, got: {error.strerror}. Choose another folder."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fcmae data samples`; 0 when the files are written.

    Raises:
        InputError: an option or the folder cannot be used.
    """
    parser = OptionParser(
        "fcmae data samples", "Write annotated photographs to try detection and segmentation on."
    )
    parser.add_argument("out", metavar="DIR", help="gets images/, labels/ and annotations.json")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="images (default: 12)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the shapes (default: 0)")
    arguments = parser.parse_args(argv)
    require(arguments.count >= 1, f"--count: expected at least 1, got {arguments.count}.")
    require(arguments.seed >= 0, f"--seed: expected 0 or more, got {arguments.seed}.")
    write_samples(arguments.out, arguments.count, seed=arguments.seed)
    print(f"wrote {arguments.count} images, their label maps and annotations.json to {arguments.out}")
    return 0


@cache
def _photograph(name: str) -> np.ndarray:
    return load_sample_image(name)


def _draw(generator: np.random.Generator) -> Sample:
    size = (
        int(generator.integers(*_HEIGHTS, endpoint=True)),
        int(generator.integers(*_WIDTHS, endpoint=True)),
    )
    back, front = generator.permutation(_PHOTOGRAPHS)
    image = _crop(back, size, generator)
    owner = np.zeros(size, dtype=np.int64)  # number of the shape that a pixel shows, from 1 on
    labels: list[int] = []
    wanted = int(generator.integers(*_OBJECTS, endpoint=True))
    while len(labels) < wanted:
        label = int(generator.integers(1, len(CLASSES)))
        shape = _shape(label, size, generator)
        visible = [(owner == number) & ~shape for number in range(1, len(labels) + 1)]
        left = [part.sum() / max(1, (owner == number).sum()) for number, part in enumerate(visible, start=1)]
        if min(left, default=1.0) < _LEAST_VISIBLE:
            continue
        labels.append(label)
        owner[shape] = len(labels)
        image[shape] = _crop(front, size, generator)[shape]
    instances = [(label, owner == number) for number, label in enumerate(labels, start=1)]
    return Sample(image, np.array([0, *labels], dtype=np.uint8)[owner], instances)


def _crop(name: str, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    photograph = _photograph(name)
    top, left = (
        int(generator.integers(0, side - wanted + 1))
        for side, wanted in zip(photograph.shape, size, strict=False)
    )
    return photograph[top : top + size[0], left : left + size[1]].copy()


def _shape(label: int, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A disc, a square or a triangle somewhere in the image, turned at random: bool [H, W]."""
    radius = generator.uniform(0.15, 0.28) * min(size)
    centre = [generator.uniform(radius, side - radius) for side in size]
    canvas = Image.new("1", (size[1], size[0]))
    pencil = ImageDraw.Draw(canvas)
    corners = {2: 4, 3: 3}.get(label, 64)  # a disc has many
    turn = generator.uniform(0, 2 * math.pi)
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    pencil.polygon(
        [(centre[1] + radius * math.cos(angle), centre[0] + radius * math.sin(angle)) for angle in angles],
        fill=1,
    )
    return np.array(canvas)


def _annotation(label: int, mask: np.ndarray) -> dict[str, Any]:
    """COCO's fields of an instance: box, area and run lengths, column after column, zeros first."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    pixels = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": label,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": counts.tolist()},
    }
