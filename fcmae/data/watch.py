"""What the loader's processes are reading: a hung or killed one ends in a line that names the image."""

import re
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.utils.data import get_worker_info

from fcmae.data.dataset import ImageDataset
from fcmae.errors import InputError

_TIMED_OUT = "DataLoader timed out"
_EXITED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (exited unexpectedly|is killed by signal)")
"""How torch 2.7 to 2.15 word the two; neither has a type of its own."""


class Reading:
    """The image that each loader process is reading now, in memory that they share with this one.

    Args:
        dataset: Names the images.
        workers: Loader processes.
    """

    def __init__(self, dataset: ImageDataset, workers: int) -> None:
        self._dataset = dataset
        self._index_of_worker = torch.full((workers,), -1).share_memory_() if workers else None

    @contextmanager
    def note(self, index: int) -> Iterator[None]:
        """Called in a loader process around its reading of image `index`."""
        worker = get_worker_info()
        if worker is None or self._index_of_worker is None:
            yield
            return
        self._index_of_worker[worker.id] = index
        try:
            yield
        finally:  # an unreadable image is read, too
            self._index_of_worker[worker.id] = -1

    def explain(self, error: RuntimeError, *, timeout: float) -> InputError | None:
        """What to raise for a RuntimeError of the loader; None: it is no timeout and no killed process."""
        killed = _EXITED.search(str(error))
        if killed is None and _TIMED_OUT not in str(error):
            return None
        indices = [] if self._index_of_worker is None else self._index_of_worker.tolist()
        names = [self._dataset.name_of(index) for index in indices if index >= 0]
        where = f"while reading {', '.join(names)}" if names else "while no image was being read"
        if killed is not None:
            return InputError(
                f"data.workers: expected loader processes that live, got process {killed[1].strip()} killed "
                f"{where}. Look for a lack of memory, lower data.workers, or check the file."
            )
        return InputError(
            f"data.timeout: expected a batch within {timeout:g} s, got none {where}. "
            "Check the disk and the files, or raise data.timeout."
        )


@contextmanager
def explained(batches: Iterator[Any]) -> Iterator[None]:
    """Inside, a loader process that is killed ends in the line in which it would end while it is waited for.

    torch reports it from a signal handler, so wherever this process is, and mostly between two batches.

    Args:
        batches: A loader's; other iterators explain nothing.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(batches, Generator):
            batches.throw(error)
        raise


def leave_signals_to_parent(worker: int) -> None:
    """Let a loader process live on when a terminal or Slurm asks all processes of a run to stop.

    The training process saves, for which it needs its batches, and ends its loaders itself. A second SIGTERM
    ends the process, as torch does where one hangs.

    Args:
        worker: Its number; not used.
    """

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first)
