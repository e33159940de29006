"""Which annotated images are trained and validated on; the samples; COCO's metrics of what is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from coco_files import rectangle, write_coco

from fcmae.config import DetectDataConfig
from fcmae.downstream.detection.data.dataset import Target, open_instances
from fcmae.downstream.detection.detect import Detections
from fcmae.downstream.detection.metrics import AveragePrecision
from fcmae.downstream.samples import write_samples
from fcmae.errors import InputError

CATEGORIES = ((3, "cell"), (9, "nucleus"))


def config(path: Path, **options: Any) -> DetectDataConfig:
    return DetectDataConfig(source="coco", root=str(path.parent), annotations=str(path), **options)


def numbers(data: DetectDataConfig, split: Any) -> list[int]:
    dataset, _ = open_instances(data, split=split)
    return [dataset.load(index).number for index in range(len(dataset))]


def test_a_share_is_held_out_and_empty_images_are_not_trained_on(tmp_path: Path) -> None:
    some = [rectangle(1, 2, 3, 4, id=number, image_id=7 + number) for number in range(9)]
    crowd = rectangle(1, 2, 3, 4, id=10, image_id=16, iscrowd=1)
    path = write_coco(tmp_path, [*some, crowd], count=10)
    train, val = (numbers(config(path, val_fraction=0.3), split) for split in ("train", "val"))
    assert len(val) == 3 and not set(train) & set(val) and set(train) | set(val) | {9} == set(range(10))
    assert len(numbers(config(path, val_fraction=0.3, empty_images=True), "train")) == 7
    same = config(path, val_fraction=0.0)
    assert numbers(same, "train") == list(range(9)) and numbers(same, "val") == list(range(10))


def test_the_validation_file_has_all_of_its_images_and_the_training_files_classes(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "train", [rectangle(1, 2, 3, 4)])
    val = write_coco(tmp_path / "val", [], count=2)
    options = {"val_root": str(val.parent), "val_annotations": str(val)}
    assert numbers(config(path, **options), "train") == [0]
    assert numbers(config(path, **options), "val") == [0, 1]
    write_coco(tmp_path / "val", [], count=2, sections={"categories": [{"id": 1, "name": "x"}]})
    with pytest.raises(InputError, match=r"data.val_annotations: expected the 2 categories"):
        open_instances(config(path, **options), split="val")


@pytest.mark.parametrize(
    ("split", "advice"), [("train", "data.empty_images"), ("val", "data.val_fraction=0")]
)
def test_a_split_without_an_image_is_refused(tmp_path: Path, split: Any, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        open_instances(config(write_coco(tmp_path, [])), split=split)


def test_what_was_left_out_is_told_with_an_example(tmp_path: Path) -> None:
    bad = [rectangle(1, 2, 0, 4, id=number) for number in (1, 2)]
    path = write_coco(tmp_path, [*bad, rectangle(1, 2, 3, 4, id=3)])
    _, annotations = open_instances(config(path, broken="skip", val_fraction=0.0), split="train")
    assert annotations.told() == [
        "left out 2 boxes without area: expected a box with an area, got [1, 2, 0, 4] in annotation 1 of "
        "0.png"
    ]


def test_the_samples_are_what_is_written_for_users(tmp_path: Path) -> None:
    write_samples(tmp_path)
    files = DetectDataConfig(
        source="coco",
        root=str(tmp_path / "images"),
        annotations=str(tmp_path / "annotations.json"),
        val_fraction=0.0,
    )
    written, read = open_instances(files, split="train")
    built_in, annotations = open_instances(DetectDataConfig(val_fraction=0.0), split="train")
    assert len(written) == len(built_in) == 12 and read.categories == annotations.categories
    for index in (0, 11):
        ours, theirs = built_in.load(index), written.load(index)
        assert ours.image.shape == theirs.image.shape and ours.image.dtype == torch.float32
        assert (ours.image - theirs.image / 255).abs().mean() < 0.02  # JPEG
        for one, other in zip(ours.target, theirs.target, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"source": "coco"}, "data.root: expected a path with data.source=coco"),
        ({"source": "coco", "root": "x"}, "data.annotations: expected a path"),
        ({"root": "x"}, "data.root: expected none with data.source=samples, got x"),
        ({"val_annotations": "x"}, "data.val_annotations: expected none"),
        ({"scale": (0.0, 1.0)}, "data.scale: expected 0 < low <= high"),
        ({"image_size": (0, 5)}, "data.image_size: expected positive sides"),
    ],
)
def test_settings_that_contradict_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as raised:
        DetectDataConfig(**options)
    assert str(raised.value).startswith(line)


def truth() -> Target:
    """Two instances of class 1 and one of class 2; the second is a crowd of class 1."""
    masks = torch.zeros(3, 120, 120, dtype=torch.uint8)
    masks[0, 10:60, 10:60] = 1
    masks[1, 60:120, 0:120] = 1
    masks[2, 10:60, 70:110] = 1
    return Target(
        boxes=torch.tensor([[10.0, 10, 60, 60], [0, 60, 120, 120], [70, 10, 110, 60]]),
        labels=torch.tensor([1, 1, 2]),
        masks=masks,
        crowd=torch.tensor([False, True, False]),
        area=masks.sum(dim=(1, 2)).float(),
    )


def found(target: Target, chosen: list[int], scores: list[float]) -> Detections:
    part = target.at(torch.tensor(chosen, dtype=torch.int64))
    return Detections(part.boxes, part.labels, torch.tensor(scores), part.masks.bool())


def measure(*pairs: tuple[Detections, Target]) -> dict[str, float]:
    metric = AveragePrecision(CATEGORIES, per_class=True)
    for detections, target in pairs:
        metric.add(detections, target)
    return metric.compute()


def test_finding_all_is_a_precision_of_one_and_crowds_neither_help_nor_harm() -> None:
    target = truth()
    result = measure((found(target, [0, 2], [0.9, 0.8]), target))
    assert result["box_ap"] == result["mask_ap"] == result["mask_ap/cell"] == result["box_ar"] == 1.0
    assert "mask_ap_small" not in result  # there are none
    # Two boxes within the crowd, and the crowd itself: not counted as wrong.
    with_crowd = found(target, [0, 1, 1, 2], [0.5, 0.9, 0.9, 0.8])
    assert measure((with_crowd, target))["mask_ap"] == 1.0


def test_what_is_missed_or_wrong_costs_precision() -> None:
    target = truth()
    missed = measure((found(target, [0], [0.9]), target))
    assert missed["mask_ap/cell"] == 1.0 and missed["mask_ap/nucleus"] == 0.0 and missed["mask_ap"] == 0.5
    wrong = found(target, [0, 2], [0.9, 0.8])
    assert measure((wrong._replace(labels=torch.tensor([2, 1])), target))["box_ap"] == 0.0
    # Boxes are right, masks are not.
    assert measure((wrong._replace(masks=wrong.masks.flip(0)), target))["mask_ap"] == 0.0


def test_an_image_without_instances_makes_detections_in_it_wrong() -> None:
    target = truth()
    empty = target.at(torch.tensor([], dtype=torch.int64))
    result = measure(
        (found(target, [0], [0.9]), target.at(torch.tensor([0]))), (found(target, [0], [0.95]), empty)
    )
    assert result["box_ap"] == pytest.approx(0.5)
    assert measure((found(target, [], []), empty)) == {}
