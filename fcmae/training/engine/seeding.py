"""Random numbers as functions of the run's seed and the step: a resumed run draws what it would have."""

import random

import numpy as np
import torch


def _derive_seed(seed: int, *path: int) -> int:
    """A 64-bit seed for one place of a run.

    Args:
        seed: The run's seed.
        path: Non-negative integers that name the place, such as (step, rank, micro-batch).
    """
    words = [seed & 0xFFFF_FFFF_FFFF_FFFF, *path]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def seed_draws(seed: int, *path: int) -> None:
    """Seed the global generators of Python, NumPy (mixup) and torch (stochastic depth) for a forward pass."""
    value = _derive_seed(seed, *path)
    random.seed(value)
    np.random.seed(value & 0xFFFF_FFFF)
    torch.manual_seed(value)


def mask_generator(seed: int, step: int) -> torch.Generator:
    """A generator for the masks of one step's global batch; on the CPU, so that every device masks alike.

    Every process and micro-batch draws from its own copy and takes its part.
    """
    # (step, 0, 0) is the first process' first micro-batch: published runs of one process drew there.
    return torch.Generator().manual_seed(_derive_seed(seed, step, 0, 0, 1))
