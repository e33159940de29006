"""Low-shot lists: the same on every machine, one inside the next, and checked when they are read."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcmae.config import DataConfig
from fcmae.errors import InputError
from fcmae.evaluation.features import Split, open_split
from fcmae.evaluation.frozen.splits import SPLITS, Size, draw, load_or_write

NAMES = [f"class{label}/{number:03}.png" for label in range(4) for number in range(50 * (label + 1))]
LABELS = [int(name[5]) for name in NAMES]
DIGITS = [36, 1752, 1742, 1090, 496, 822, 412, 273, 123, 525]
SIZES = [Size(per_class=1), Size(per_class=2), Size(per_class=5), Size(percent=1.0)]


def test_lists_are_the_same_on_every_machine():
    chosen = [
        NAMES[index]
        for size in SIZES
        for number in range(SPLITS)
        for index in draw(NAMES, LABELS, size, number=number)
    ]
    digest = hashlib.sha256("\n".join(chosen).encode()).hexdigest()
    assert digest == "628ef09bc97cf28859fd3a388c7f2a133b2a75e401424851a3cbfd6532b6021f"


def test_lists_of_the_digits_are_the_same_on_every_machine():
    split = open_split(DataConfig(source="digits", image_size=32, workers=0), "train")
    chosen = draw(split.names, split.labels.tolist(), Size(per_class=1), number=0)
    assert [split.names[index] for index in chosen] == [f"digits[{number}]" for number in DIGITS]


@pytest.mark.parametrize("number", range(SPLITS))
def test_order_of_the_files_plays_no_part(number: int):
    order = torch.randperm(len(NAMES)).tolist()
    names, labels = [NAMES[place] for place in order], [LABELS[place] for place in order]
    for size in SIZES:
        straight = {NAMES[index] for index in draw(NAMES, LABELS, size, number=number)}
        assert straight == {names[index] for index in draw(names, labels, size, number=number)}


def test_larger_lists_hold_the_smaller_and_the_three_differ():
    one, two, five = (set(draw(NAMES, LABELS, size, number=0)) for size in SIZES[:3])
    assert one < two < five and len(five) == 20
    assert len({tuple(draw(NAMES, LABELS, SIZES[2], number=number)) for number in range(SPLITS)}) == SPLITS


def test_a_share_counts_each_class_by_itself():
    chosen = draw(NAMES, LABELS, Size(percent=3.0), number=0)
    assert torch.tensor(LABELS)[chosen].bincount().tolist() == [2, 3, 4, 6]  # 1.5 and 4.5 round to even
    assert len(draw(NAMES, LABELS, Size(percent=0.1), number=0)) == 4


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match=r"lowshot.per_class: expected at most the 50 .*, got 51\. Lower it"):
        draw(NAMES, LABELS, Size(per_class=51), number=0)


@pytest.fixture
def split(folder_data: DataConfig) -> Split:
    return open_split(folder_data, "train")


def test_written_once_and_read_again(split: Split, tmp_path: Path):
    first = load_or_write(tmp_path / "lists", split, Size(per_class=2), number=1)
    path = tmp_path / "lists" / "2imgs_1.txt"
    text = path.read_text()
    assert text.startswith("# 2 a class, list 1 of 3\nclass0/") and len(text.splitlines()) == 7
    lines = text.splitlines()
    path.write_text("\n".join([*lines[:1], "", *reversed(lines[1:])]) + "\n")  # a user's own list counts
    assert load_or_write(tmp_path / "lists", split, Size(per_class=2), number=1) == first[::-1]


def test_lists_do_not_depend_on_where_the_data_lies(
    folder_data: DataConfig, image_folder, split: Split, tmp_path: Path
):
    moved = open_split(replace(folder_data, root=str(image_folder("elsewhere"))), "train")
    assert moved.names == split.names and moved.names[0].startswith("class0/")
    for name, part in (("here", split), ("there", moved)):
        load_or_write(tmp_path / name, part, Size(per_class=2), number=0)
    here, there = ((tmp_path / name / "2imgs_0.txt").read_bytes() for name in ("here", "there"))
    assert here == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"expected 2 images of each class in .*2imgs_0.txt, got 1 of 'class2'"),
        (lambda lines: [*lines, "class0/99.png"], r"got 'class0/99.png' and 0 more that are none"),
        (lambda lines: [*lines, lines[-1]], r"expected each image once in .*, got 'class2/.*' twice"),
        (lambda lines: lines[:3], r"got 0 of 'class1'"),
    ],
)
def test_lists_with_other_counts_are_refused(split: Split, tmp_path: Path, change, message: str):
    load_or_write(tmp_path, split, Size(per_class=2), number=0)
    path = tmp_path / "2imgs_0.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(InputError, match=message) as error:
        load_or_write(tmp_path, split, Size(per_class=2), number=0)
    assert "\n" not in str(error.value)


def test_lists_of_five_do_not_pass_for_lists_of_three(split: Split, tmp_path: Path):
    """The original's 3imgs_class.txt."""
    load_or_write(tmp_path, split, Size(per_class=5), number=0)
    (tmp_path / "5imgs_0.txt").rename(tmp_path / "3imgs_0.txt")
    with pytest.raises(InputError, match=r"expected 3 images of each class in .*, got 5 of 'class0'"):
        load_or_write(tmp_path, split, Size(per_class=3), number=0)
