"""Stages of an ablation as processes of their own, which a signal to the ablation stops too."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from fcmae.errors import InputError

STOPPED = (75, 130)
"""Exit codes of a run that was told to stop and has saved."""


class Execute(Protocol):
    """Runs `python -m <module> <arguments>`, appends what it prints to a file, and returns the exit code."""

    received: str | None
    """Name of the signal that asked the ablation to stop, or None."""

    def __call__(self, module: str, arguments: Sequence[str], output: Path) -> int: ...


class Processes:
    """Starts each stage as a process, one at a time.

    A process of its own has its own peak of memory, ends alone when memory does, and may itself start one a
    GPU. SIGINT, SIGTERM and SIGUSR1 are passed on to it, and it saves; a terminal's Ctrl-C comes once, since
    the process is in another group.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            self._handlers[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __call__(self, module: str, arguments: Sequence[str], output: Path) -> int:
        """Run a stage to its end; negative: the signal that killed it.

        Raises:
            InputError: a process of this run is there, maybe of an ablation that was itself killed.
        """
        with output.open("ab") as file:
            try:
                # Held by the process too, which inherits the open file.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"ablate: expected no other process to write to {output.parent}, got one. Wait for it, "
                    "or end it."
                ) from None
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            if self.received:  # it came while the process was being made
                self._process.terminate()
            try:
                return self._process.wait()
            finally:
                self._process = None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if self._process is not None:
            self._process.send_signal(number)
