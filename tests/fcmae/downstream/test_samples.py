"""The built-in annotated photographs: both kinds of annotation say the same, the same every time."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcmae.cli import main
from fcmae.downstream.samples import CLASSES, draw_samples, write_samples


def decode(segmentation: dict) -> np.ndarray:
    """Run lengths, one by one."""
    height, width = segmentation["size"]
    values = [value for place, run in enumerate(segmentation["counts"]) for value in [place % 2] * run]
    return np.array(values, dtype=bool).reshape(width, height).T


def test_label_maps_are_the_instances() -> None:
    samples = draw_samples(12)
    assert {label for sample in samples for label, _ in sample.instances} == {1, 2, 3}
    assert len({sample.labels.shape for sample in samples}) > 6
    for sample in samples:
        drawn = np.zeros_like(sample.labels)
        for label, mask in sample.instances:
            assert not drawn[mask].any() and mask.sum() > 200
            drawn[mask] = label
        assert np.array_equal(drawn, sample.labels)
        assert sample.image.shape == (*sample.labels.shape, 3) and sample.image.std() > 20


def test_samples_are_a_function_of_seed_and_number() -> None:
    few, many, other = draw_samples(2, seed=3), draw_samples(3, seed=3), draw_samples(2, seed=4)
    for first, second in zip(few, many, strict=False):
        assert np.array_equal(first.image, second.image) and np.array_equal(first.labels, second.labels)
    assert not np.array_equal(few[0].image[:100, :100], other[0].image[:100, :100])


def test_files_hold_the_samples(tmp_path: Path) -> None:
    write_samples(tmp_path, 3)
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASSES[1:])
    for sample, entry in zip(draw_samples(3), content["images"], strict=True):
        picture = np.asarray(Image.open(tmp_path / "images" / entry["file_name"]))
        assert picture.shape == sample.image.shape and (entry["height"], entry["width"]) == picture.shape[:2]
        assert np.abs(picture.astype(float) - sample.image).mean() < 5  # JPEG
        number = Path(entry["file_name"]).stem
        assert np.array_equal(np.asarray(Image.open(tmp_path / "labels" / f"{number}.png")), sample.labels)
        found = [one for one in content["annotations"] if one["image_id"] == entry["id"]]
        for (label, mask), one in zip(sample.instances, found, strict=True):
            assert np.array_equal(decode(one["segmentation"]), mask)
            left, top, width, height = one["bbox"]
            box = mask[top : top + height, left : left + width]
            assert box.sum() == mask.sum() == one["area"] and one["category_id"] == label
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
    assert len({one["id"] for one in content["annotations"]}) == len(content["annotations"])


def test_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "samples", str(tmp_path / "new"), "--count", "2"]) == 0
    assert "wrote 2 images" in capsys.readouterr().out
    assert len(list((tmp_path / "new" / "images").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "--count", "0"], "--count: expected at least 1, got 0."),
        (["{folder}/file"], "samples: expected to write into"),
        ([], "fcmae: data samples: "),
    ],
)
def test_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["data", "samples", *(word.format(folder=tmp_path) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
