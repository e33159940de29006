"""Random numbers of one batch, and of its parts: however a batch is split, an image keeps its own."""

from typing import NamedTuple

import torch
from torch import Tensor


class BatchPart(NamedTuple):
    """A batch as one of equal parts of a larger one, such as all processes' batches of a step.

    Masks are drawn for the larger batch and the part takes its own rows, so that an image's mask follows from
    the generator and the image's place in the larger batch, whatever the number of parts.
    """

    index: int
    """Images before this part, in parts."""
    count: int
    """Parts of the larger batch."""


WHOLE = BatchPart(0, 1)
"""The batch is not a part of any other."""


def draw_uniform(
    *shape: int,
    part: BatchPart,
    dim: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1) for a part of a batch.

    Args:
        shape: Of the result.
        part: Numbers are drawn for all parts, and those of this one returned.
        dim: The dimension of `shape` that counts images.
        generator: Source of randomness, on `device`.
        device: Where the numbers are drawn.
    Returns:
        float32 [*shape].
    """
    whole = [size * part.count if place == dim else size for place, size in enumerate(shape)]
    numbers = torch.rand(whole, generator=generator, device=device)
    return numbers.narrow(dim, part.index * shape[dim], shape[dim])
