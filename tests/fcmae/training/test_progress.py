"""What a run shows while it goes on: a bar with numbers on a terminal, plain lines elsewhere."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fcmae.training.engine.logs import RunLog
from fcmae.training.engine.logs import progress as screen
from fcmae.training.engine.logs.progress import Bar, PlainLines, open_progress, summary

TRAIN = {"images_per_second": 1234.5, "data_wait": 0.034, "gradient_norm": 1.25, "memory_mb": 2048.0}


def test_the_numbers_that_a_reader_watches():
    values = {"loss": 0.33333, "lr": 0.1, **TRAIN}
    assert summary(values) == "loss 0.3333, 1,234.5 images/s, data wait 3%, gradient 1.25, 2,048 MiB"
    assert summary({"loss": 1.0, "gradient_norm": None}) == "loss 1"  # a step that was skipped


def test_a_line_now_and_then_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clock = iter([0.0, 4.0, 12.0, 12.0, 13.0, 16.0, 16.0])
    monkeypatch.setattr(screen, "monotonic", lambda: next(clock))
    with RunLog(tmp_path, start=2, steps=6) as log:
        log.say("hello")
        for step in range(3, 7):
            log.advance(loss=1 / step)
            log.write("train", step=step, loss=1 / step, **TRAIN)
    shown = capsys.readouterr()
    assert shown.out == "hello\n"
    numbers = "1,234.5 images/s, data wait 3%, gradient 1.25, 2,048 MiB"
    assert shown.err.splitlines() == [
        f"step 4/6, loss 0.25, {numbers}, 0:00:12 left",  # 6 s a step
        f"step 6/6, loss 0.1667, {numbers}, 0:00:00 left",
    ]


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]):
    progress = open_progress(start=0, steps=2, shown=False)
    progress.say("hello")
    progress.advance({"loss": 1.0})
    progress.close()
    assert capsys.readouterr() == ("", "")


class Terminal:
    """A terminal that stderr and stdout are, and what appeared on it."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        self.stream = os.fdopen(theirs, "w")
        self._seen = b""
        # Else whoever writes would wait once a few kilobytes are unread.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
            while block := os.read(self._ours, 2**12):
                self._seen += block

    def text(self) -> str:
        """All that was written, without the codes that move and colour; nothing can be written any more."""
        self.stream.close()
        self._reader.join()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._seen.decode())


@contextlib.contextmanager
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Not a fixture: pytest would put its own streams back before the test runs."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.redirect_stderr(terminal.stream), contextlib.redirect_stdout(terminal.stream):
        yield terminal
    terminal.text()
    os.close(terminal._ours)


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with on_a_terminal(monkeypatch) as terminal:
        with RunLog(tmp_path, start=1, steps=3) as log:
            log.write("train", step=1, loss=0.5, **TRAIN)
            log.say("hello [bold]brackets[/bold] stay")
            for step in (2, 3):
                log.advance(loss=1 / step)
        shown = terminal.text()
    assert "hello [bold]brackets[/bold] stay" in shown
    last = shown[shown.rindex("step") :]
    assert "3/3" in last and "100%" in last and "left 0:00:00" in last
    assert "loss 0.3333, 1,234.5 images/s, data wait 3%, gradient 1.25, 2,048 MiB" in last


def test_without_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch):
    with on_a_terminal(monkeypatch):
        assert isinstance(open_progress(start=0, steps=1, shown=True), Bar)
        with open(os.devnull, "w") as file, contextlib.redirect_stderr(file):
            assert isinstance(open_progress(start=0, steps=1, shown=True), PlainLines)


def test_messages_for_a_file_do_not_go_to_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with on_a_terminal(monkeypatch) as terminal:
        with (tmp_path / "out.txt").open("w") as file, contextlib.redirect_stdout(file):
            bar = Bar(start=0, steps=1, console=Console(stderr=True))
            bar.say("hello")
            bar.close()
        shown = terminal.text()
    assert (tmp_path / "out.txt").read_text() == "hello\n"
    assert "0/1" in shown and "hello" not in shown
