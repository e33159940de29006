"""Which batch comes when: independent of workers and restarts, complete, and honest about bad files."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fcmae.config import DataConfig
from fcmae.data import (
    Batch,
    ImageDataset,
    evaluation_batches,
    finetune_transform,
    open_dataset,
    pretrain_transform,
    training_batches,
)
from fcmae.errors import InputError


class Numbers(ImageDataset):
    """Image i is 1x1 with value i: batches show which images they hold."""

    def __init__(self, count: int) -> None:
        self.labels = [index % 3 for index in range(count)]
        self.classes = ("a", "b", "c")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name_of(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> torch.Tensor:
        return torch.full((1, 1, 1), float(index))


def unchanged(image: torch.Tensor) -> torch.Tensor:
    return image


def threads(image: torch.Tensor) -> torch.Tensor:
    return torch.full((1, 1, 1), float(torch.get_num_threads()))


def three_draws(image: torch.Tensor) -> torch.Tensor:
    """A draw from each generator that augmentations use."""
    return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()]).view(3, 1, 1)


def order(batches) -> list[int]:
    return [int(value) for batch in batches for value in batch.images.flatten()]


def assert_equal_batches(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.labels is None) == (other.labels is None)
        assert one.labels is None or torch.equal(one.labels, other.labels)
        assert one.bad == other.bad


@pytest.fixture
def bad_folder(make_folder) -> Path:
    root = make_folder({"a": 4, "b": 4})
    (root / "a" / "02.png").write_bytes(b"broken")
    (root / "a" / "03.png").write_bytes((root / "a" / "03.png").read_bytes()[:200])
    return root


def test_batches_do_not_depend_on_workers(bad_folder: Path):
    config = DataConfig(root=str(bad_folder), image_size=32)
    dataset = open_dataset(config, split="all", labelled=True)
    transform = finetune_transform(config, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)

    def batches(workers: int) -> list[Batch]:
        return list(training_batches(dataset, transform, batch_size=5, seed=3, stop=6, workers=workers))

    here = batches(0)
    assert_equal_batches(batches(1), here)
    assert_equal_batches(batches(2), here)
    assert any(batch.bad for batch in here)


def test_a_resumed_run_sees_the_tail(bad_folder: Path):
    config = DataConfig(root=str(bad_folder), image_size=32)
    dataset = open_dataset(config, split="all", labelled=False)
    transform = pretrain_transform(config)

    def batches(start: int, workers: int) -> list[Batch]:
        options = {"batch_size": 3, "seed": 0, "stop": 9, "workers": workers}
        return list(training_batches(dataset, transform, start=start, **options))

    whole = batches(0, 0)
    assert len(whole) == 9 and whole[0].labels is None
    assert_equal_batches(batches(4, 0), whole[4:])
    assert_equal_batches(batches(7, 2), whole[7:])
    assert batches(9, 0) == []


def test_every_pass_is_a_new_permutation():
    seen = order(training_batches(Numbers(10), unchanged, batch_size=4, seed=0, stop=5, workers=0))
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != list(range(10))
    other = order(training_batches(Numbers(10), unchanged, batch_size=4, seed=1, stop=5, workers=0))
    assert other != seen


def test_a_batch_may_exceed_the_dataset():
    (batch,) = training_batches(Numbers(3), unchanged, batch_size=8, seed=0, stop=1, workers=0)
    values = [int(value) for value in batch.images.flatten()]
    assert sorted(values[:3]) == sorted(values[3:6]) == [0, 1, 2] and len(values) == 8
    assert batch.labels is not None and batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [value % 3 for value in values]


def test_ranks_share_one_sequence():
    def batches(batch_size: int, **ranks: int) -> list[Batch]:
        options = {"batch_size": batch_size, "seed": 0, "stop": 4, "workers": 0}
        return list(training_batches(Numbers(10), three_draws, **options, **ranks))

    shards = [batches(3, rank=rank, world_size=2) for rank in range(2)]
    whole = batches(6)
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([shard[number].images for shard in shards]), batch.images)


def test_draws_differ_between_positions_and_seeds_and_leave_the_generators_alone():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def draws(seed: int) -> torch.Tensor:
        batches = training_batches(Numbers(2), three_draws, batch_size=4, seed=seed, stop=3, workers=0)
        return torch.cat([batch.images for batch in batches]).flatten()

    both = torch.cat([draws(0), draws(1)])
    assert len(both.unique()) == len(both)
    assert torch.equal(draws(0), both[:36]) and torch.equal(draws(-5), draws(-5))
    list(evaluation_batches(Numbers(2), unchanged, batch_size=4, workers=0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]


def test_a_worker_uses_one_thread():
    torch.set_num_threads(2)
    (batch,) = training_batches(Numbers(2), threads, batch_size=1, seed=0, stop=1, workers=1)
    assert batch.images.item() == 1


def test_bad_images_are_replaced_by_the_next_and_named(bad_folder: Path):
    config = DataConfig(root=str(bad_folder), image_size=32)
    dataset = open_dataset(config, split="all", labelled=True)
    (batch,) = training_batches(dataset, mean_pixel, batch_size=8, seed=0, stop=1, workers=0)
    # Files 2 and 3 of class a are bad: their places are taken by file 4, the first of class b.
    expected = sorted(mean_pixel(dataset.load(index)).item() for index in (0, 1, 4, 4, 4, 5, 6, 7))
    assert sorted(batch.images.flatten().tolist()) == expected
    assert batch.labels is not None and sorted(batch.labels.tolist()) == [0, 0, 1, 1, 1, 1, 1, 1]
    named = sorted(line.split(": ", 1)[0] for line in batch.bad)
    second, third = dataset.name_of(2), dataset.name_of(3)
    assert named == [second, third, third]  # the third also stood in the second's way
    assert all(": " in line and "\n" not in line for line in batch.bad)


def mean_pixel(image: torch.Tensor) -> torch.Tensor:
    return image.float().mean().view(1, 1, 1)


def test_evaluation_takes_every_image_once_in_order():
    for workers in (0, 2):
        batches = list(evaluation_batches(Numbers(7), unchanged, batch_size=3, workers=workers))
        assert [len(batch.images) for batch in batches] == [3, 3, 1]
        assert order(batches) == list(range(7))
        assert [label for batch in batches for label in batch.labels.tolist()] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_evaluation_leaves_bad_images_out_and_names_each_once(bad_folder: Path, batch_size: int):
    dataset = open_dataset(DataConfig(root=str(bad_folder)), split="all", labelled=True)
    batches = list(evaluation_batches(dataset, mean_pixel, batch_size=batch_size, workers=0))
    assert all(0 < len(batch.images) == len(batch.labels) <= batch_size for batch in batches)
    values = torch.cat([batch.images for batch in batches]).flatten().tolist()
    assert values == [mean_pixel(dataset.load(index)).item() for index in (0, 1, 4, 5, 6, 7)]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 1, 1, 1, 1]
    bad = [line.split(": ", 1)[0] for batch in batches for line in batch.bad]
    assert bad == [dataset.name_of(2), dataset.name_of(3)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_a_folder_of_unreadable_images_ends_with_one_line(tmp_path: Path, workers: int, phase: str):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    dataset = open_dataset(DataConfig(root=str(tmp_path)), split="all", labelled=False)
    with pytest.raises(InputError) as caught:
        if phase == "training":
            next(training_batches(dataset, unchanged, batch_size=2, seed=0, stop=9, workers=workers))
        else:
            next(evaluation_batches(dataset, unchanged, batch_size=2, workers=workers))
    message = str(caught.value)
    assert "got 5 unreadable" in message and ".jpg: cannot identify image" in message and "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_channels_end_with_one_line_also_from_a_worker(make_folder, workers: int):
    root = make_folder({"": 2})
    dataset = open_dataset(DataConfig(root=str(root), in_chans=12), split="all", labelled=False)
    with pytest.raises(InputError) as caught:
        next(training_batches(dataset, unchanged, batch_size=2, seed=0, stop=1, workers=workers))
    assert "expected images of 12 channels, got 3" in str(caught.value) and "\n" not in str(caught.value)


def test_satellite_tiles_end_to_end(tmp_path: Path):
    generator = np.random.default_rng(0)
    for number in range(4):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{number}.npy", generator.integers(0, 10000, (40, 40, 12), dtype=np.uint16))
    config = DataConfig(
        root=str(tmp_path), image_size=32, in_chans=12, mean=(0.07,) * 12, std=(0.04,) * 12, val_fraction=0.5
    )
    train = open_dataset(config, split="train", labelled=True)
    (batch,) = training_batches(train, pretrain_transform(config), batch_size=4, seed=0, stop=1, workers=1)
    assert batch.images.shape == (4, 12, 32, 32) and batch.bad == []
    assert batch.images.mean().abs() < 0.5 and batch.images.unique().numel() > 10_000  # more than 8 bits
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]


class Counted(Numbers):
    """Counts how often an image is decoded."""

    decoded = 0

    def load(self, index: int) -> torch.Tensor:
        self.decoded += 1
        return super().load(index)


def with_draw(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([image, torch.rand(1, 1, 1)])


def test_repeats_are_neighbours_decoded_once_and_drawn_apart():
    dataset = Counted(5)
    options = {"batch_size": 6, "seed": 0, "stop": 5, "workers": 0}
    batches = list(training_batches(dataset, with_draw, repeats=3, **options))
    assert dataset.decoded == 5 * 6 // 3
    images = torch.cat([batch.images for batch in batches]).flatten(1).view(-1, 3, 2)  # [image, repeat, ...]
    assert (images[:, :, 0] == images[:, :1, 0]).all()
    assert sorted(images[:5, 0, 0].tolist()) == sorted(images[5:, 0, 0].tolist()) == [0, 1, 2, 3, 4]
    assert len(images[:, :, 1].unique()) == 30
    assert all(batch.labels.tolist() == [int(n) % 3 for n in batch.images[:, 0, 0, 0]] for batch in batches)
    # Their order is that of a run without repeats, and their draws are those of its positions.
    plain = torch.cat([batch.images for batch in training_batches(Numbers(5), with_draw, **options)]).flatten(
        1
    )
    assert torch.equal(images[:, 0, 0], plain[:10, 0])
    assert torch.equal(images[:, :, 1].flatten(), plain[:, 1])


def test_repeats_resume_and_share_exactly(bad_folder: Path):
    config = DataConfig(root=str(bad_folder), image_size=32)
    dataset = open_dataset(config, split="all", labelled=True)

    def batches(batch_size: int = 4, **options) -> list[Batch]:
        options = {"seed": 0, "stop": 6, "workers": 0, "repeats": 2, **options}
        return list(training_batches(dataset, pretrain_transform(config), batch_size=batch_size, **options))

    whole = batches()
    assert_equal_batches(batches(start=3, workers=2), whole[3:])
    shards = [batches(2, rank=rank, world_size=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([shard[number].images for shard in shards]), batch.images)
    assert any(batch.bad for batch in whole)
    with pytest.raises(InputError, match=r"data\.repeats: expected a divisor of train\.batch_size 5, got 2"):
        batches(5)
