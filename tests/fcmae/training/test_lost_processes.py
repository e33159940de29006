"""A process is killed or hangs: the others end in one line. All are killed: the run goes on as it was."""

import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from processes import output, run_processes, start_processes
from training_runs import assert_same_tensors, events, last_state

from fcmae.config import PretrainConfig

KILLS = 4


def newest_of(config: PretrainConfig) -> str:
    link = Path(config.run.dir, "checkpoints", "newest.pt")
    return os.readlink(link) if link.is_symlink() else ""


def wait_for_a_step(config: PretrainConfig, processes: list[BaseProcess]) -> None:
    reached = newest_of(config)
    while newest_of(config) == reached:
        assert all(process.is_alive() for process in processes), output(config, 0)
        time.sleep(0.005)


def of_two(config: PretrainConfig, **run: float) -> PretrainConfig:
    return replace(config, run=replace(config.run, devices=2, **run))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_the_other_process_ends_in_one_line_and_the_run_goes_on(pretrain_config, how: signal.Signals):
    config = of_two(pretrain_config(steps=2000, checkpoint_every=1, log_every=100), timeout=3)
    first, second = start_processes(config, 2)
    wait_for_a_step(config, [first, second])
    assert second.pid is not None
    os.kill(second.pid, how)
    first.join(timeout=60)
    second.kill()
    assert first.exitcode == 75
    lines = output(config, 0).splitlines()
    (line,) = [line for line in lines if line.startswith("fcmae: ")]
    assert lines[-1] == line and "Traceback" not in output(config, 0)
    step = last_state(config.run.dir)["step"]
    assert "expected every process to answer within 3 s, got none" in line
    assert line.endswith(f"--resume=auto goes on from {config.run.dir}/checkpoints/step_{step:08d}.pt.")
    assert next(entry["step"] for entry in events(config.run.dir, "process_lost")) >= step


@pytest.mark.slow
def test_both_processes_killed_at_random_moments_end_with_the_same_weights(pretrain_config):
    """kill -9, among them while a checkpoint is written: one is written every step."""
    options = {"steps": 40 * KILLS, "checkpoint_every": 1, "log_every": 100}
    config, whole = (of_two(pretrain_config(name, **options)) for name in ("killed", "whole"))
    draw, reached = random.Random(0), [""]
    for _ in range(KILLS):
        processes = start_processes(config, 2)
        wait_for_a_step(config, processes)
        time.sleep(draw.uniform(0.0, 0.1))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        reached.append(newest_of(config))
    assert len(set(reached)) == KILLS + 1
    killed, whole = (last_state(run_processes(run, 2)) for run in (config, whole))
    assert killed["step"] == whole["step"] == 40 * KILLS
    assert_same_tensors(killed["model"], whole["model"])
    assert_same_tensors(killed["optimizer"], whole["optimizer"])
