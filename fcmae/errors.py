"""How a run can end early: a user's mistake, a request to stop, or a process of it that is lost.

Each is a clear line, no traceback.
"""


class InputError(ValueError):
    """A user's input that cannot be used: `<what>: expected ..., got .... <what to change>`.

    The command line prints it as one line and exits with code 2; as a library it is a ValueError.
    """


class Stopped(Exception):
    """A run was asked to stop, has saved, and can go on.

    Args:
        request: Who asked: a signal's name, or another process of the run.
        step: Optimiser steps done and saved.
    """

    def __init__(self, request: str, *, step: int) -> None:
        super().__init__(f"{request}: stopped and saved after step {step}.")
        self.request, self.step = request, step


class ProcessLostError(Exception):
    """Another process of the run ended or did not answer in time; the last checkpoint can be gone on from."""
