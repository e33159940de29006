"""The `fcmae` command: what it runs, and how it refuses."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fcmae import cli
from fcmae.config import FinetuneConfig, PretrainConfig
from fcmae.errors import InputError, Stopped
from sparse_ops import BackendUnavailableError

ROOT = Path(__file__).parents[2]


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, function: str, result: object) -> list:
    """Put a module in the place of one that a command imports; its function notes its calls, then acts."""
    calls = []

    def run(argument: object) -> object:
        calls.append(argument)
        if isinstance(result, BaseException):
            raise result
        return result

    fake = ModuleType(module)
    setattr(fake, function, run)
    package, _, name = module.rpartition(".")
    __import__(package)
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(sys.modules[package], name, fake, raising=False)
    return calls


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which the command refuses."""
    assert cli.main(argv) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("fcmae: ") and output.err.count("\n") == 1
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "got none. fcmae --help"),
        (["pretrian"], "The nearest is pretrain."),
        (["--config", "run.yaml"], "expected one of pretrain"),
        (["bench"], "fcmae bench step"),
        (["pretrain", "--train.stps=3"], "The nearest is train.steps."),
        (["pretrain", "--config", "absent.yaml"], "absent.yaml"),
        (["pretrain", "--data.source=folder"], "Add --data.root DIR."),
        (["pretrain", "--model.mask_ratio=1"], "model.mask_ratio: expected a value in (0, 1), got 1."),
        (["finetune", "--train.layer_decay=2"], "train.layer_decay: expected a value in (0, 1], got 2."),
        (["finetune", "--model.mask_ratio=0.6"], "expected a configuration key, got model.mask_ratio."),
    ],
)
def test_mistakes_are_one_line(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in refusal(argv, capsys)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in ("pretrain", "finetune", "convert", "reconstruct", "bench"))


def test_command_help_describes_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--help"]) == 0
    text = capsys.readouterr().out
    assert (
        text.startswith("usage: fcmae pretrain")
        and "--model.mask_ratio" in text
        and "(the paper: 0.6)" in text
    )


@pytest.mark.parametrize(("command", "cls"), [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)])
def test_training_commands_run_their_configuration(
    command: str, cls: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, f"fcmae.training.{command}", command, None)
    assert cli.main([command, "--train.steps=3"]) == 0
    assert isinstance(calls[0], cls) and calls[0].train.steps == 3


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (["convert"], "fcmae.convert.command"),
        (["reconstruct"], "fcmae.report.command"),
        (["bench", "step"], "fcmae.bench.step"),
    ],
)
def test_other_commands_pass_their_arguments_and_code(
    argv: list[str], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(monkeypatch, module, "main", 1)
    assert cli.main([*argv, "a", "--b"]) == 1
    assert calls == [["a", "--b"]]


def test_user_errors_of_a_run_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "fcmae.training.pretrain", "pretrain", InputError("data.root: expected\nimages."))
    assert refusal(["pretrain"], capsys) == "fcmae: data.root: expected images.\n"


def test_missing_backend_shows_every_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = BackendUnavailableError("subm_conv2d(...): no backend can run this call.\n  triton: no GPU")
    stand_in(monkeypatch, "fcmae.training.pretrain", "pretrain", reasons)
    assert cli.main(["pretrain"]) == 2
    assert capsys.readouterr().err == f"fcmae: {reasons}\n"


def test_interrupt_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stand_in(monkeypatch, "fcmae.training.pretrain", "pretrain", KeyboardInterrupt())
    folder = tmp_path / "checkpoints"
    assert cli.main(["pretrain", f"--run.dir={tmp_path}"]) == 130
    assert capsys.readouterr().err == f"fcmae: interrupted. No checkpoint was written to {folder} yet.\n"

    folder.mkdir()
    (folder / "step_00000001.pt").touch()
    assert cli.main(["pretrain", f"--run.dir={tmp_path}"]) == 130
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"checkpoints in {folder} are kept" in line and "--resume=auto" in line


@pytest.mark.parametrize(("command", "again"), [("pretrain", " with --resume=auto"), ("evaluate", "")])
def test_a_stopped_run_says_how_it_goes_on(
    command: str, again: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = Stopped("SIGTERM", step=3)
    if command == "pretrain":
        stand_in(monkeypatch, "fcmae.training.pretrain", "pretrain", stop)
    else:  # a fine-tuning run inside it
        monkeypatch.setattr("fcmae.protocols.evaluate.evaluate", lambda *_: (_ for _ in ()).throw(stop))
    assert cli.main([command]) == cli.EXIT_STOPPED
    message = f"fcmae: SIGTERM: stopped and saved after step 3. The same command{again} goes on.\n"
    assert capsys.readouterr().err == message


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "fcmae.training.pretrain", "pretrain", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["pretrain"])


def test_module_runs_as_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fcmae", "pretrian"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"]])
def test_a_reader_who_leaves_ends_it_quietly(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "fcmae", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.EXIT_UNREAD


def test_another_broken_pipe_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "fcmae.convert.command", "main", BrokenPipeError())
    with pytest.raises(BrokenPipeError):
        cli.main(["convert"])
