"""Which images of a labelled set are trained on, and which are held out."""

from collections.abc import Sequence

import torch

from fcmae.errors import InputError

# The split belongs to the data, not to the run: runs of any seed train and validate on the same images.
_SPLIT_SEED = 0


def hold_out(labels: Sequence[int], *, val_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation images, each class split alike.

    The order is random but fixed, class by class. Every class keeps at least one training image.

    Args:
        labels: Class of each image; all equal where there are none.
        val_fraction: Share of the images that is held out, in [0, 0.9]; the count is rounded to nearest.
    Returns:
        (training, validation), each grouped by class.
    """
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    shuffled = torch.randperm(len(labels), generator=generator).tolist()
    by_class = sorted(shuffled, key=lambda index: labels[index])  # stable: random within a class

    train: list[int] = []
    val: list[int] = []
    owed = 0.0  # images that should have been held out so far, less those that were
    previous = None
    for index in by_class:
        owed += val_fraction
        if owed >= 0.5 and labels[index] == previous:
            val.append(index)
            owed -= 1
        else:
            train.append(index)
        previous = labels[index]
    return train, val


def limit_labels(
    indices: Sequence[int], labels: Sequence[int], classes: Sequence[str], *, per_class: int
) -> list[int]:
    """The first `per_class` of `indices` of each class.

    Raises:
        InputError: a class has fewer images.
    """
    taken: list[int] = []
    counts = [0] * len(classes)
    for index in indices:
        if counts[labels[index]] < per_class:
            taken.append(index)
            counts[labels[index]] += 1
    for name, count in zip(classes, counts, strict=True):
        if count < per_class:
            raise InputError(
                f"data.labels_per_class: expected at most the {count} training images of class {name!r}, "
                f"got {per_class}. Lower it, or add images."
            )
    return taken
