"""The `fcmae` command: its subcommands' help, its exit codes and its errors in one line."""

import difflib
import os
import select
import sys
from collections.abc import Sequence

from fcmae.cli.commands import COMMANDS
from fcmae.errors import InputError, ProcessLostError, Stopped

EXIT_STOPPED = 75
"""A run was told to stop and has saved, or lost a process: EX_TEMPFAIL, for a scheduler to start it again."""
EXIT_UNREAD = 141
"""Nobody reads what is printed any more: as a shell tells of SIGPIPE."""

_EXTRAS = {name: "downstream" for name in ("faster_coco_eval", "torchmetrics", "transformers")}
"""Packages that some commands need -> the extra that brings them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fcmae COMMAND ...` and return its exit code.

    A user's mistake (InputError) and a backend that cannot run end in one message on stderr and exit code 2,
    Ctrl-C in exit code 130, a run that SIGTERM, SIGUSR1 or SIGUSR2 stopped or that lost a process in
    EXIT_STOPPED, a stdout that nobody reads any more in EXIT_UNREAD. Any other exception is a bug and keeps
    its traceback.

    Args:
        argv: The arguments after `fcmae`; None: the process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here a reader who left is noticed, not at the interpreter's end
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return EXIT_UNREAD
    except InputError as error:
        return _refuse(" ".join(str(error).split()))
    except Stopped as stop:
        again = "" if arguments[0] == "evaluate" else " with --resume=auto"  # whose runs always go on
        print(f"fcmae: {stop} The same command{again} goes on.", file=sys.stderr)
        return 130 if stop.request == "SIGINT" else EXIT_STOPPED
    except ProcessLostError as error:
        print(f"fcmae: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt as error:
        print(f"fcmae: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _refuse(
            f"{arguments[0]}: expected the package {package}, got none. "
            f"Run: pip install 'fcmae[{_EXTRAS[package]}]'."
        )
    except Exception as error:
        from sparse_ops import BackendUnavailableError  # loads torch, which other errors should not wait for

        if not isinstance(error, BackendUnavailableError):
            raise
        return _refuse(str(error))


def _reader_left() -> bool:
    """Whether nobody reads stdout any more, as behind `| head`; what is left in it is then dropped."""
    if sys.stdout is None:
        return False
    stdout, poll = sys.stdout.fileno(), select.poll()
    poll.register(stdout, 0)  # errors alone, of which this is one
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _refuse(message: str) -> int:
    print(f"fcmae: {message}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"The nearest is {nearest[0]}." if nearest else "fcmae --help describes them."
        raise InputError(f"command: expected one of {', '.join(COMMANDS)}, got {name or 'none'}. {advice}")
    return COMMANDS[name].run(rest) or 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: fcmae COMMAND [--config FILE] [--section.field=VALUE ...]",
            "",
            "Masked-image pretraining of networks with convolutions, on the visible sites only.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "fcmae COMMAND --help describes the options of one command.",
        ]
    )
