"""An arm of the GPU benchmark: a whole pretraining step with its optimiser, in a process of its own.

A process that runs out of memory, meets a wrong kernel or hangs in a compiler takes no other arm with it, and
arms compile at the same time. Between its turns an arm gives its unused memory back to the device.
"""

import multiprocessing
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from fcmae.bench.arms import StepSpec
from fcmae.bench.gpu.training import TrainingStep


class OutOfMemoryError(RuntimeError):
    """An arm does not fit into the device's memory at this batch size."""


class ArmError(RuntimeError):
    """An arm cannot run; the message says why."""


class TimeEndedError(RuntimeError):
    """The benchmark's time ended while an arm was asked."""


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """An arm: the step, a name for it, and whether it is replayed as a CUDA graph."""

    name: str
    step: StepSpec
    graph: bool = False


class Arm(Protocol):
    """What a case asks of its arms."""

    spec: ArmSpec

    def ready(self, until: float) -> dict[str, Any]:
        """Wait for the arm's facts: loss, grad_norm, parameters, state_bytes, seconds, engines."""
        ...

    def turn(self, steps: int, until: float) -> dict[str, Any]:
        """Time steps: "seconds" of each and the "peak_bytes" among them."""
        ...

    def close(self) -> None:
        """End the arm."""
        ...


class ProcessArm:
    """An `Arm` in a process, started at once.

    Args:
        spec: What to run.
    """

    def __init__(self, spec: ArmSpec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, spec))
        self._process.start()
        theirs.close()

    def ready(self, until: float) -> dict[str, Any]:
        """See `Arm`; `until` is a time of `time.monotonic()`."""
        return self._answer(until)

    def turn(self, steps: int, until: float) -> dict[str, Any]:
        """See `Arm`."""
        self._connection.send(steps)
        return self._answer(until)

    def _answer(self, until: float) -> dict[str, Any]:
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            raise TimeEndedError(f"{self.spec.name}: time ended before it answered")
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            raise ArmError(
                f"{self.spec.name}: its process ended with exit code {self._process.exitcode}"
            ) from None
        if answer.get("failed") == "memory":
            raise OutOfMemoryError(f"{self.spec.name}: out of memory")
        if "failed" in answer:
            raise ArmError(f"{self.spec.name}: {answer['failed']}")
        return answer

    def close(self) -> None:
        """End the process; its memory is free afterwards."""
        self._connection.close()
        self._process.kill()
        self._process.join(10)


def serve(connection: Connection, spec: ArmSpec) -> None:
    """The process's side: the facts first, then an answer for each request of so many steps."""
    try:
        torch.set_num_threads(spec.step.threads)
        training = TrainingStep(spec.step, graph=spec.graph)
        connection.send(training.facts)
        while True:
            connection.send(training.turn(connection.recv()))
    except EOFError:
        return
    except torch.OutOfMemoryError:
        connection.send({"failed": "memory"})
    except Exception as error:
        traceback.print_exc()
        connection.send({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
