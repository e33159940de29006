"""COCO's instance annotations: read once, each instance checked, its mask kept as a run-length code."""

import json
import os
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fcmae.downstream.detection.data.instances import BrokenInstanceError, Instance, read_instance
from fcmae.errors import InputError


class CocoImage(NamedTuple):
    """An image of a COCO file, with its instances."""

    id: int
    file_name: str
    height: int
    width: int
    instances: list[Instance]


class CocoAnnotations(Sequence[CocoImage]):
    """The images of a COCO file in its order, each pickled: loader processes share the memory of bytes.

    Args:
        images: What the file lists.
        categories: (id, name) of each class, the class numbers being 1, 2, ... in this order.
        skipped: How many instances and images were left out, by what is wrong with them.
        examples: One line for each entry of `skipped`.
    """

    def __init__(
        self,
        images: Sequence[CocoImage],
        *,
        categories: tuple[tuple[int, str], ...],
        skipped: Mapping[str, int] | None = None,
        examples: tuple[str, ...] = (),
    ) -> None:
        self._images = [pickle.dumps(image) for image in images]
        self.categories, self.skipped, self.examples = categories, dict(skipped or {}), examples

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return pickle.loads(self._images[index])

    def told(self) -> list[str]:
        """A line for each kind of what was left out: its count, and one of them."""
        counts = self.skipped.items()
        return [
            f"left out {count} {kind}: {example}"
            for (kind, count), example in zip(counts, self.examples, strict=True)
        ]


@dataclass(frozen=True)
class _Problem:
    """Something broken: what kind it is, and a line about it."""

    kind: str
    line: str


def read_coco(
    path: str,
    root: str,
    *,
    field: str,
    skip: bool,
    categories: tuple[tuple[int, str], ...] | None = None,
) -> CocoAnnotations:
    """The images and instances of a COCO JSON file.

    Args:
        path: The file.
        root: Folder that its file names are relative to.
        field: The setting that messages name.
        skip: Leave broken instances and missing images out and count them, instead of refusing the file.
        categories: Those of the training file, for another file; None: those of this one, by their ids.
    Raises:
        InputError: the file cannot be read, is no COCO file, lists an id twice or no image; the categories
            are not those given; or, unless `skip`, anything in it is broken.
    """
    content = _read_json(path, field)
    found = _categories(content["categories"], path, field)
    if categories is not None and set(found) != set(categories):
        raise InputError(
            f"{field}: expected the {len(categories)} categories of data.annotations, got {len(found)} that "
            f"are not the same in {path}. Write both files with one list of categories."
        )
    classes = {category: number for number, (category, _) in enumerate(categories or found, start=1)}
    problems: list[_Problem] = []
    images = _images(content["images"], root, path, field, problems)
    for number, annotation in enumerate(content["annotations"]):
        _add(annotation, number, images, classes, problems)
    if problems and not skip:
        more = f" {len(problems) - 1} more are broken." if len(problems) > 1 else ""
        raise InputError(
            f"{field}: expected {problems[0].line} in {path}.{more} Correct them, or set --data.broken=skip "
            "to leave them out."
        )
    kept = [image for image in images.values() if image is not None]
    if not kept:
        raise InputError(f"{field}: expected images, got none in {path} that is there. Check data.root.")
    counts = Counter(problem.kind for problem in problems)  # in the order of their first ones
    first = {problem.kind: f"expected {problem.line}" for problem in reversed(problems)}
    return CocoAnnotations(
        kept,
        categories=categories or found,
        skipped=counts,
        examples=tuple(first[kind] for kind in counts),
    )


def _read_json(path: str, field: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"{field}: expected a COCO file, got {error.strerror}: {path}. Check it.") from error
    except ValueError as error:
        raise InputError(f"{field}: expected JSON, got {error} in {path}. Check the file.") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not _is_table(content.get(name)):
            raise InputError(
                f"{field}: expected a COCO file, with lists of objects named images, annotations and "
                f"categories, got no such {name} in {path}. Check the file."
            )
    return content


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _categories(entries: list[dict[str, Any]], path: str, field: str) -> tuple[tuple[int, str], ...]:
    named = [(entry.get("id"), str(entry.get("name", entry.get("id")))) for entry in entries]
    found = sorted((category, name) for category, name in named if isinstance(category, int))
    ids = {category for category, _ in found}
    if not found or len(ids) < len(entries):
        raise InputError(
            f"{field}: expected categories with an integer id each, none twice, got {len(entries)} with "
            f"{len(ids)} ids in {path}. Correct the file."
        )
    return tuple(found)


def _images(
    entries: list[dict[str, Any]], root: str, path: str, field: str, problems: list[_Problem]
) -> dict[int, CocoImage | None]:
    """The listed images by id; None for one that is left out, and its instances with it."""
    images: dict[int, CocoImage | None] = {}
    for entry in entries:
        try:
            image = CocoImage(int(entry["id"]), str(entry["file_name"]), *_size(entry), [])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{field}: expected images with id, file_name, height and width, got "
                f"{json.dumps(entry)[:200]} in {path}. Correct the file."
            ) from None
        if image.id in images:
            raise InputError(
                f"{field}: expected each image id once, got {image.id} again in {path}. Correct the file."
            )
        there = os.path.isfile(os.path.join(root, image.file_name))
        images[image.id] = image if there else None
        if not there:
            line = f"an image file at {os.path.join(root, image.file_name)}, got none, for image {image.id}"
            problems.append(_Problem("image files that are missing", line))
    return images


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    height, width = int(entry["height"]), int(entry["width"])
    if min(height, width) < 1:
        raise ValueError
    return height, width


def _add(
    annotation: dict[str, Any],
    number: int,
    images: dict[int, CocoImage | None],
    classes: Mapping[int, int],
    problems: list[_Problem],
) -> None:
    """Give the annotation's image its instance, or note what is wrong with it."""
    where = f"annotation {annotation.get('id', f'number {number}')}"
    name = annotation.get("image_id")
    try:
        if not isinstance(name, int) or name not in images:
            raise BrokenInstanceError("unlisted images", "the id of a listed image", name)
        image = images[name]
        if image is None:
            return  # counted with its file
        where += f" of {image.file_name}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in classes:
            raise BrokenInstanceError("unknown categories", "the id of a listed category", category)
        instance = read_instance(annotation, classes[category], height=image.height, width=image.width)
        image.instances.append(instance)
    except BrokenInstanceError as error:
        problems.append(_Problem(error.kind, f"{error} in {where}"))
