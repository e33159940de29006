"""A run that is asked to stop finishes its step and saves; one that loses a process says so and ends."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from torch.distributed import DistError

from fcmae.convert.files import newest_checkpoint
from fcmae.errors import ProcessLostError, Stopped
from fcmae.training.engine.logs import RunLog


class StopRequests:
    """Notes SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 while it is entered; the loop looks between two steps.

    A second SIGINT interrupts at once, as it would without this. Outside the main thread, where Python lets
    nobody listen, nothing is noted.

    Attributes:
        received: The first signal's name, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: str | None = None
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        try:
            for number in self.SIGNALS:
                self._handlers[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread
            self._handlers.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name


def stopped(log: RunLog, requests: StopRequests, *, step: int) -> Stopped:
    """Log that a run ends early because it was told to, and return what to raise.

    Args:
        log: The run's log.
        requests: Those of this process; where it received none, another process did.
        step: Optimiser steps done and saved.
    """
    request = requests.received or "another process"
    log.write("stopped", step=step, request=request)
    return Stopped(request, step=step)


def process_lost(log: RunLog, error: RuntimeError, *, timeout: float) -> ProcessLostError | None:
    """Log that another process does not answer, and return what to raise; None: `error` says something else.

    Args:
        log: The run's log.
        error: Of a step or of a wait for the others.
        timeout: Seconds that a process waits for the others.
    """
    text = str(error)
    if not isinstance(error, DistError) and "gloo" not in text:  # gloo's errors have no type of their own
        return None
    reason = text.rpartition("] ")[2].splitlines()[0] if "] " in text else text.splitlines()[0]
    log.write("process_lost", step=log.step, reason=reason)
    good = newest_checkpoint(log.path.parent)
    kept = f"--resume=auto goes on from {good}" if good is not None else "there is no checkpoint yet"
    return ProcessLostError(
        f"run: expected every process to answer within {timeout:g} s, got none from one of them after step "
        f"{log.step} ({reason}). See what that one printed; {kept}."
    )
