"""One annotated instance: its box and its mask, checked against the image that it lies in."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor


class BrokenInstanceError(Exception):
    """An annotation that is no instance: `kind` says how messages count it, the text what was expected."""

    def __init__(self, kind: str, expected: str, got: Any) -> None:
        text = got if isinstance(got, str) else json.dumps(got)
        super().__init__(f"{expected}, got {text if len(text) <= 80 else text[:77] + '...'}")
        self.kind = kind


class Instance(NamedTuple):
    """An instance of a class in an image."""

    label: int
    """Class number, from 1 on."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) in pixels, within the image."""
    mask: bytes
    """COCO's compressed run lengths of the mask."""
    crowd: bool
    """A region of many instances, which is not trained on and in which no detection counts as wrong."""
    area: float
    """Pixels, as annotated: decides what COCO's metrics count as small, medium or large."""


def read_instance(annotation: dict[str, Any], label: int, *, height: int, width: int) -> Instance:
    """The instance of a COCO annotation.

    A box that reaches over the image's edge is clipped: COCO's own do, by fractions of a pixel.

    Args:
        annotation: With "bbox" (left, top, width, height), "segmentation" (polygons, run lengths, or these
            compressed) and, where there are such, "iscrowd" and "area".
        label: Class number.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    Raises:
        BrokenInstanceError: the box or the mask is missing, malformed, empty or not in the image.
    """
    box = _box(annotation.get("bbox"), height=height, width=width)
    code = _run_lengths(annotation.get("segmentation"), height=height, width=width)
    pixels = int(coco_mask.area(code))
    if pixels == 0:
        raise BrokenInstanceError("masks without a pixel", "a mask of at least one pixel", "an empty one")
    area = annotation.get("area")
    return Instance(
        label=label,
        box=box,
        mask=code["counts"],
        crowd=bool(annotation.get("iscrowd", 0)),
        area=float(area if area is not None and _is_number(area) else pixels),
    )


def decode_masks(codes: list[bytes], *, height: int, width: int) -> Tensor:
    """Masks [N, H, W], uint8, of their compressed run lengths."""
    if not codes:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    decoded = coco_mask.decode([{"size": [height, width], "counts": code} for code in codes])  # [H, W, N]
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """COCO's {"size", "counts"} of a mask [H, W], bool or uint8; ready for JSON."""
    code = coco_mask.encode(np.asfortranarray(mask.to(torch.uint8).cpu().numpy()))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def _box(box: Any, *, height: int, width: int) -> tuple[float, float, float, float]:
    if box is None:
        raise BrokenInstanceError("missing boxes", "a box", "none")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise BrokenInstanceError("malformed boxes", "a box of four numbers", box)
    left, top, wide, high = box
    if wide <= 0 or high <= 0:
        raise BrokenInstanceError("boxes without area", "a box with an area", box)
    right, bottom = min(left + wide, width), min(top + high, height)
    left, top = max(left, 0), max(top, 0)
    if right <= left or bottom <= top:
        raise BrokenInstanceError("boxes outside their image", f"a box inside {width} x {height} pixels", box)
    return float(left), float(top), float(right), float(bottom)


def _run_lengths(segmentation: Any, *, height: int, width: int) -> dict[str, Any]:
    """pycocotools' compressed form of any of COCO's forms of a mask."""
    if not segmentation:
        raise BrokenInstanceError("missing masks", "a mask (segmentation)", "none")
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, height=height, width=width)
        parts: Any = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.merge(parts)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise BrokenInstanceError("malformed masks", "a mask of polygons or run lengths", segmentation)
    size, counts = [height, width], segmentation["counts"]
    if segmentation.get("size") != size:
        raise BrokenInstanceError(
            "masks of another size", f"run lengths of size {size} (height, width)", segmentation.get("size")
        )
    try:
        # Of text the library checks what it unpacks; of numbers it takes any.
        code = (
            {"size": size, "counts": counts.encode()}
            if isinstance(counts, str)
            else _compressed(size, counts)
        )
        coco_mask.decode(code)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BrokenInstanceError(
            "malformed run lengths", f"run lengths of {height * width} pixels in all", counts
        ) from error
    return code


def _compressed(size: list[int], runs: Any) -> dict[str, Any]:
    height, width = size
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError
    code: Any = coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)
    return code


def _check_polygon(polygon: Any, *, height: int, width: int) -> None:
    numbers = polygon if isinstance(polygon, list) else []
    if len(numbers) < 6 or len(numbers) % 2 or not all(map(_is_number, numbers)):
        raise BrokenInstanceError(
            "malformed polygons", "a polygon of three points or more, x and y in turn", polygon
        )
    # The library walks along every edge: far points would cost it hours and gigabytes.
    if not all(-width <= x <= 2 * width for x in numbers[::2]) or not all(
        -height <= y <= 2 * height for y in numbers[1::2]
    ):
        raise BrokenInstanceError(
            "polygons outside their image", f"a polygon inside {width} x {height} pixels", polygon
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
