"""The order of a pass through shards: how far from a walk through them, and what it depends on."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcmae.data.order import Window, announced, shuffled_passes


def passes(shard: list[int], size: int, *, seed: int = 0, number: int = 1) -> list[list[int]]:
    count = len(shard)
    window = Window(np.array(shard, dtype=np.int32), size)
    options = {"seed": seed, "start": 0, "stop": number, "rank": 0, "world_size": 1, "repeats": 1}
    order = shuffled_passes(count, batch_size=count, window=window, **options)
    return [[index for _, index in batch] for batch in order]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 40), st.integers(0, 2**31))
def test_no_image_leaves_its_window(sizes: list[int], size: int, seed: int):
    shard = [number for number, count in enumerate(sizes) for _ in range(count)]
    (walk,) = passes(shard, 0, seed=seed)
    visited = [shard[index] for index in walk]
    changes = sum(left != right for left, right in pairwise(visited))
    assert changes == len(sizes) - 1  # shard after shard
    assert all(first < second for first, second in pairwise(walk) if shard[first] == shard[second])

    (order,) = passes(shard, size, seed=seed)
    assert sorted(order) == list(range(len(shard)))
    place = {index: number for number, index in enumerate(walk)}
    assert all(abs(place[index] - number) <= size for number, index in enumerate(order))


def test_passes_and_seeds_differ_and_wide_windows_mix_all():
    shard = [number // 10 for number in range(100)]
    first, second = passes(shard, 20, number=2)
    assert first != second != passes(shard, 20, seed=1)[0] != first == passes(shard, 20)[0]
    (mixed,) = passes(shard, 1000)
    assert len({shard[index] for index in mixed[:20]}) > 6
    assert len({shard[index] for index in first[:20]}) < 6


@pytest.mark.parametrize("ahead", [1, 3, 99])
def test_batches_are_announced_ahead_in_order(ahead: int):
    batches = [[(2 * number, number), (2 * number + 1, 10 + number)] for number in range(6)]
    told: list[list[int]] = []
    for number, batch in enumerate(announced(iter(batches), told.append, ahead=ahead)):
        assert batch == batches[number]
        assert told == [[one, 10 + one] for one in range(min(6, number + ahead + 1))]
