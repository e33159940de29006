"""Which image stands where, and each place's random numbers: functions of the seed and the place alone."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*parts: object) -> int:
    """64 bits that depend on every part; unlike `hash`, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def shuffled_passes(
    count: int,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
    repeats: int,
) -> Iterator[list[tuple[int, int]]]:
    """(first position, index) of each image of each batch."""
    current = -1
    permutation = torch.empty(0, dtype=torch.int64)
    for number in range(start, stop):
        first = (number * world_size + rank) * batch_size
        batch: list[tuple[int, int]] = []
        for position in range(first, first + batch_size, repeats):
            epoch, place = divmod(position // repeats, count)
            if epoch != current:
                generator = torch.Generator().manual_seed(seed_of("order", seed, epoch))
                permutation = torch.randperm(count, generator=generator)
                current = epoch
            batch.append((position, int(permutation[place])))
        yield batch


def seed_generators(seed: int) -> None:
    """Seeds torch's CPU generator, numpy's and Python's: timm's augmentations draw from all three."""
    # Not torch.manual_seed: it would also restart the GPU's generator, which the network's drop path uses.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Puts the states of the three back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
