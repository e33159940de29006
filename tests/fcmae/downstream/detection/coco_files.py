"""A small COCO file with images, to be broken by tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60


def rectangle(left: float, top: float, width: float, height: float, **fields: Any) -> dict[str, Any]:
    """An annotation of a rectangle, its mask a polygon along its edge."""
    right, bottom = left + width, top + height
    return {
        "id": 1,
        "image_id": 7,
        "category_id": 3,
        "bbox": [left, top, width, height],
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "area": width * height,
        "iscrowd": 0,
        **fields,
    }


def write_coco(
    folder: Path,
    annotations: list[dict[str, Any]],
    *,
    count: int = 1,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    sections: Mapping[str, Any] | None = None,
) -> Path:
    """Write `count` pictures, whose ids are 7, 8, ..., and their annotations; the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        listed.append({"id": 7 + number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
    content = {
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cell"}, {"id": 9, "name": "nucleus"}],
        **(sections or {}),
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path
