"""A loader process that hangs or dies ends the run in one line that names the image."""

import os
import signal
import time

import pytest
import torch
from test_loader import Numbers, unchanged

from fcmae.data import evaluation_batches, training_batches
from fcmae.errors import InputError


class Stuck(Numbers):
    """Image 3 takes longer than the timeout."""

    def name_of(self, index: int) -> str:
        return f"slow/{index}.png"

    def load(self, index: int) -> torch.Tensor:
        if index == 3:
            time.sleep(6)  # torch waits five seconds for the process to end
        return super().load(index)


class Deadly(Stuck):
    """The system kills who reads image 0, as it does when memory ends."""

    def load(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)


def test_a_hung_loader_is_named():
    batches = training_batches(Stuck(6), unchanged, batch_size=1, seed=0, stop=6, workers=2, timeout=2)
    with pytest.raises(InputError) as caught:
        list(batches)
    assert str(caught.value) == (
        "data.timeout: expected a batch within 2 s, got none while reading slow/3.png. "
        "Check the disk and the files, or raise data.timeout."
    )


def test_a_hung_evaluation_ends_too():
    with pytest.raises(InputError, match=r"data\.timeout: expected a batch within 2 s"):
        list(evaluation_batches(Stuck(6), unchanged, batch_size=1, workers=1, timeout=2))


def test_a_killed_loader_process_is_named():
    with pytest.raises(
        InputError, match=r"got process \d+ killed while reading slow/0\.png\. Look"
    ) as caught:
        list(training_batches(Deadly(1), unchanged, batch_size=1, seed=0, stop=1, workers=1, timeout=60))
    assert "\n" not in str(caught.value)


def broken(image: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("a bug in the transform")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_stay_what_they_are(workers: int):
    with pytest.raises(RuntimeError, match="a bug in the transform"):
        next(training_batches(Numbers(2), broken, batch_size=1, seed=0, stop=1, workers=workers, timeout=60))
