"""COCO files in, instances out; each broken entry is one line or is counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import HEIGHT, WIDTH, rectangle, write_coco
from faster_coco_eval.core import mask as coco_mask

from fcmae.data import UnreadableImageError
from fcmae.downstream.detection.data.coco import CocoAnnotations, read_coco
from fcmae.downstream.detection.data.dataset import InstanceDataset
from fcmae.errors import InputError

BLOB = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
BLOB[5:15, 8:20] = 1
BLOB[9:12, 30:33] = 1
CODE = coco_mask.encode(np.asfortranarray(BLOB))
TEXT = CODE["counts"].decode()
SIZE = [HEIGHT, WIDTH]


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths, column by column, the first one of zeros."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


def read(path: Path, **options: Any) -> CocoAnnotations:
    return read_coco(str(path), str(path.parent), field="data.annotations", **{"skip": False, **options})


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        read(path, **options)
    message = str(raised.value)
    assert "\n" not in message and message.startswith("data.annotations: expected ")
    return message


@pytest.mark.parametrize(
    "segmentation",
    [
        [[8, 5, 20, 5, 20, 15, 8, 15], [30, 9, 33, 9, 33, 12, 30, 12]],
        {"size": SIZE, "counts": runs_of(BLOB)},
        {"size": SIZE, "counts": TEXT},
    ],
    ids=["polygons", "runs", "compressed"],
)
def test_every_form_of_a_mask_gives_its_pixels(tmp_path: Path, segmentation: Any) -> None:
    path = write_coco(tmp_path, [rectangle(8, 5, 25, 10, segmentation=segmentation)])
    example = InstanceDataset(read(path), str(tmp_path), in_chans=3).load(0)
    assert torch.equal(example.target.masks[0], torch.from_numpy(BLOB))
    assert example.target.boxes.tolist() == [[8, 5, 33, 15]]


def test_classes_are_numbered_by_their_ids_and_crowds_are_marked(tmp_path: Path) -> None:
    crowd = rectangle(0, 0, 9, 9, id=2, category_id=9, iscrowd=1, area=77)
    read_ = read(write_coco(tmp_path, [rectangle(1, 2, 3, 4), crowd], count=2))
    assert read_.categories == ((3, "cell"), (9, "nucleus")) and read_.skipped == {}
    dataset = InstanceDataset(read_, str(tmp_path), in_chans=1)
    example = dataset.load(0)
    assert example.image.shape == (1, HEIGHT, WIDTH)
    assert example.target.labels.tolist() == [1, 2]
    assert example.target.crowd.tolist() == [False, True]
    assert example.target.area.tolist() == [12, 77]
    assert dataset.load(1).target.masks.shape == (0, HEIGHT, WIDTH)
    assert dataset.name_of(1) == str(tmp_path / "1.png")


def test_a_box_over_the_edge_is_clipped(tmp_path: Path) -> None:
    image = read(write_coco(tmp_path, [rectangle(50, -2, 10.4, 12)]))[0]
    assert image.instances[0].box == (50, 0, 60, 10)


BROKEN = {
    "missing boxes": ({"bbox": None}, "expected a box, got none in annotation 1 of 0.png"),
    "malformed boxes": ({"bbox": [1, 2, 3]}, "a box of four numbers, got [1, 2, 3]"),
    "malformed boxes (text)": ({"bbox": [1, 2, 3, "4"]}, "a box of four numbers"),
    "malformed boxes (nan)": ({"bbox": [1, 2, 3, float("nan")]}, "a box of four numbers"),
    "boxes without area": ({"bbox": [1, 2, 0, 4]}, "a box with an area, got [1, 2, 0, 4]"),
    "boxes outside their image": ({"bbox": [60, 2, 5, 4]}, "a box inside 60 x 40 pixels, got [60, 2, 5, 4]"),
    "unknown categories": ({"category_id": 4}, "the id of a listed category, got 4"),
    "unlisted images": ({"image_id": 70}, "the id of a listed image, got 70 in annotation 1"),
    "missing masks": ({"segmentation": []}, "a mask (segmentation), got none"),
    "malformed masks": ({"segmentation": "x"}, "a mask of polygons or run lengths, got x"),
    "malformed polygons": ({"segmentation": [[1, 2, 3, 4]]}, "a polygon of three points or more"),
    "malformed polygons (odd)": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon of three points"),
    "malformed polygons (flat)": ({"segmentation": [1, 2, 3, 4, 5, 6]}, "a polygon of three points"),
    "polygons outside their image": (
        {"segmentation": [[1, 1, 1e9, 1, 1, 5]]},
        "a polygon inside 60 x 40 pixels",
    ),
    "masks without a pixel": (
        {"segmentation": {"size": SIZE, "counts": [HEIGHT * WIDTH]}},
        "a mask of at least one pixel",
    ),
    "masks of another size": (
        {"segmentation": {"size": [WIDTH, HEIGHT], "counts": TEXT}},
        "run lengths of size [40, 60] (height, width), got [60, 40]",
    ),
    "malformed run lengths": (
        {"segmentation": {"size": SIZE, "counts": [9, 9]}},
        "run lengths of 2400 pixels",
    ),
    "malformed run lengths (negative)": (
        {"segmentation": {"size": SIZE, "counts": [-100, 2500]}},
        "run lengths of 2400 pixels",
    ),
    "malformed run lengths (cut off)": ({"segmentation": {"size": SIZE, "counts": TEXT[:-3]}}, "in all, got"),
    "malformed run lengths (not theirs)": (
        {"segmentation": {"size": SIZE, "counts": "!!"}},
        "in all, got !!",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_annotation_is_one_line_or_is_counted(tmp_path: Path, kind: str) -> None:
    fields, line = BROKEN[kind]
    path = write_coco(tmp_path, [rectangle(1, 2, 3, 4) | fields, rectangle(2, 2, 9, 9, id=5)])
    message = refusal(path)
    assert line in message and "data.broken=skip" in message

    kept = read(path, skip=True)
    assert kept.skipped == {kind.partition(" (")[0]: 1}
    assert len(kept.examples) == 1 and line in kept.examples[0]
    assert [instance.box for instance in kept[0].instances] == [(2, 2, 11, 11)]


def test_all_that_is_broken_is_counted_by_kind(tmp_path: Path) -> None:
    bad = [rectangle(1, 2, 3, 4, id=number, category_id=4) for number in (1, 2)]
    path = write_coco(
        tmp_path, [*bad, rectangle(1, 2, 0, 4, id=3), rectangle(1, 2, 3, 4, id=4, image_id=8)], count=2
    )
    (tmp_path / "1.png").unlink()
    assert "3 more are broken" in refusal(path)
    kept = read(path, skip=True)
    assert kept.skipped == {
        "unknown categories": 2,
        "boxes without area": 1,
        "image files that are missing": 1,
    }
    assert len(kept) == 1 and kept[0].instances == []
    assert any(str(tmp_path / "1.png") in line for line in kept.examples)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"images": {}}, "no such images"),
        ({"annotations": [1]}, "no such annotations"),
        ({"categories": []}, "got 0 with 0 ids"),
        ({"categories": [{"id": 1}, {"id": 1}]}, "none twice"),
        ({"images": [{"id": 7, "file_name": "0.png", "height": 0, "width": 3}]}, "height and width"),
        ({"images": [{"id": 7, "height": 2, "width": 3}]}, "file_name"),
        ({"images": [{"id": 7, "file_name": "0.png", "height": 40, "width": 60}] * 2}, "each image id once"),
        ({"images": []}, "got none"),
    ],
)
def test_what_is_no_coco_file_is_refused_even_where_broken_entries_are_skipped(
    tmp_path: Path, sections: dict[str, Any], line: str
) -> None:
    assert line in refusal(write_coco(tmp_path, [], sections=sections), skip=True)


def test_files_that_are_no_json_or_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    assert "expected JSON" in refusal(tmp_path / "x.json")
    assert "No such file" in refusal(tmp_path / "y.json")


def test_another_file_must_have_the_same_categories(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [])
    assert "2 categories of data.annotations" in refusal(path, categories=((3, "cell"), (8, "nucleus")))


def test_an_image_of_another_size_than_annotated_is_unreadable(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [])
    content = json.loads(path.read_text())
    content["images"][0]["width"] = 61
    path.write_text(json.dumps(content))
    dataset = InstanceDataset(read(path), str(tmp_path), in_chans=3)
    with pytest.raises(UnreadableImageError, match="expected 61 x 40 pixels, as annotated, got 60 x 40"):
        dataset.load(0)
