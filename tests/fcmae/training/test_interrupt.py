"""A run that is told to stop saves its step, says so, and goes on to the same weights."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_same_tensors, events, last_state

from fcmae import cli
from fcmae.config import PretrainConfig
from fcmae.errors import InputError, Stopped
from fcmae.training.engine.interrupt import StopRequests
from fcmae.training.finetune import finetune
from fcmae.training.pretrain import pretrain


def signal_at(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
    """Send this process a signal while it makes its n-th optimiser step."""
    inner, calls = torch.optim.AdamW.step, []

    def signalling(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return inner(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", signalling)


@pytest.mark.parametrize("number", StopRequests.SIGNALS)
def test_pretraining_saves_stops_and_goes_on(pretrain_config, monkeypatch, number: signal.Signals):
    whole = last_state(pretrain(pretrain_config("whole")))
    config = pretrain_config("stopped", checkpoint_every=100)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        # Noted during step 3, seen by step 4, which is the last one before the run leaves.
        signal_at(patch, number, step=3)
        with pytest.raises(Stopped, match=f"{number.name}: stopped and saved after step 4"):
            pretrain(config)
    assert signal.getsignal(number) is before
    assert last_state(config.run.dir)["step"] == 4
    assert [(line["step"], line["request"]) for line in events(config.run.dir, "stopped")] == [
        (4, number.name)
    ]
    state = last_state(pretrain(config))
    assert_same_tensors(state["model"], whole["model"])
    assert_same_tensors(state["optimizer"], whole["optimizer"])


def test_finetuning_saves_stops_and_goes_on(finetune_config, monkeypatch):
    finetune(finetune_config("whole"))
    config = finetune_config("stopped", checkpoint_every=100)
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, step=2)
        with pytest.raises(Stopped, match="after step 3"):
            finetune(config)
    finetune(config)
    whole, state = (last_state(finetune_config(name).run.dir) for name in ("whole", "stopped"))
    assert_same_tensors(state["model"], whole["model"])
    assert_same_tensors(state["ema"], whole["ema"])


@pytest.mark.parametrize("number", StopRequests.SIGNALS)
def test_all_processes_are_told_at_once(pretrain_config, monkeypatch, number: signal.Signals):
    """As by a terminal's Ctrl-C and by Slurm: the loader's processes too."""
    config = pretrain_config(data={"workers": 2}, steps=20, checkpoint_every=100)
    inner, calls = torch.optim.AdamW.step, []

    def signalling(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            for process in multiprocessing.active_children():
                assert process.pid is not None
                os.kill(process.pid, number)
            time.sleep(0.2)  # in which torch would report their end
            os.kill(os.getpid(), number)
        return inner(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", signalling)
    with pytest.raises(Stopped, match=f"{number.name}: stopped and saved after step 4"):
        pretrain(config)
    assert last_state(config.run.dir)["step"] == 4
    assert not multiprocessing.active_children()


def test_a_loader_process_killed_between_two_batches(pretrain_config, monkeypatch):
    config = pretrain_config(data={"workers": 1})
    inner = torch.optim.AdamW.step

    def killing(*args: Any, **kwargs: Any) -> Any:
        for process in multiprocessing.active_children():
            process.kill()
        time.sleep(1)  # in which torch's handler raises
        return inner(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", killing)
    with pytest.raises(
        InputError, match=r"data\.workers: expected .*, got process \d+ killed while"
    ) as caught:
        pretrain(config)
    assert "\n" not in str(caught.value)


def test_a_signal_in_the_last_step_changes_nothing(pretrain_config, monkeypatch):
    config = pretrain_config()
    signal_at(monkeypatch, signal.SIGTERM, step=config.train.steps)
    pretrain(config)
    assert last_state(config.run.dir)["step"] == config.train.steps


def test_a_second_interrupt_does_not_wait():
    with StopRequests() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("request_", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_exit_codes(request_: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys):
    def run(config: Any) -> None:
        raise Stopped(request_, step=7)

    monkeypatch.setattr("fcmae.training.pretrain.pretrain", run)
    assert cli.main(["pretrain"]) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "after step 7" in line and "--resume=auto" in line


KILLS = 20


def pretrain_quietly(config: PretrainConfig) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        pretrain(config)


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_weights(pretrain_config):
    """kill -9 at random moments, among them while a checkpoint is written: one is written every step."""
    # Children of a server that has imported everything: each begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fcmae.training.pretrain"])

    def start(name: str) -> Any:
        config = pretrain_config(name, steps=400, checkpoint_every=1, log_every=100)
        process = context.Process(target=pretrain_quietly, args=(config,))
        process.start()
        return process

    newest = Path(pretrain_config("killed").run.dir, "checkpoints", "newest.pt")
    draw, reached = random.Random(0), [""]
    for _ in range(KILLS):
        process = start("killed")
        while not newest.is_symlink() or os.readlink(newest) == reached[-1]:  # until it has made a step
            assert process.is_alive(), "the run ended before it could be killed"
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        process.join()
        reached.append(os.readlink(newest))
    assert len(set(reached)) == KILLS + 1
    for name in ("killed", "whole"):
        process = start(name)
        process.join()
        assert process.exitcode == 0
    killed, whole = (last_state(pretrain_config(name).run.dir) for name in ("killed", "whole"))
    assert killed["step"] == whole["step"] == 400
    assert_same_tensors(killed["model"], whole["model"])
    assert_same_tensors(killed["optimizer"], whole["optimizer"])
