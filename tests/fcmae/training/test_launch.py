"""The same command starts its processes itself, or is started by torchrun; numbers must agree."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import events

from fcmae.config import RunConfig, TrainConfig
from fcmae.config_io import save_config
from fcmae.errors import InputError
from fcmae.training.engine.devices import launch_fabric

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
def test_stopped_as_one_command_and_gone_on_under_torchrun(pretrain_config, tmp_path: Path):
    config = pretrain_config(steps=60, checkpoint_every=1000)
    config = replace(config, run=replace(config.run, devices=2))
    save_config(config, tmp_path / "config.yaml")
    command = ["-m", "fcmae", "pretrain", "--config", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [sys.executable, *command, "--train.steps=100000"], stderr=subprocess.PIPE, text=True, env=environment
    )
    log = Path(config.run.dir, "log.jsonl")
    while not (log.exists() and events(config.run.dir, "train")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, printed = first.communicate()
    assert first.returncode == 75
    (line,) = [line for line in printed.splitlines() if line.startswith("fcmae: ")]  # of two processes
    (stopped,) = events(config.run.dir, "stopped")
    assert f"stopped and saved after step {stopped['step']}." in line and stopped["request"] == "SIGTERM"
    assert stopped["step"] < 60
    again = subprocess.run(
        [sys.executable, *TORCHRUN, *command], capture_output=True, text=True, env=environment
    )
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in events(config.run.dir, "start")] == [0, stopped["step"]]
    assert [line["step"] for line in events(config.run.dir, "train")] == list(range(1, 61))


@pytest.mark.parametrize(
    ("launcher", "devices", "nodes", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}, 1, 1, "got 1 x 1 nodes for 4"),
        (
            {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NAME": "run"},
            8,
            1,
            "got 8 x 1 nodes for 16",
        ),
        ({"SLURM_NTASKS": "16", "SLURM_JOB_NAME": "run"}, 8, 2, "Use `--ntasks-per-node=16`"),
        ({}, 2, 2, "expected torchrun or srun to start the processes of 2 nodes"),
    ],
)
def test_other_numbers_of_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str], devices: int, nodes: int, message: str
):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        launch_fabric(RunConfig(accelerator="cpu", devices=devices, nodes=nodes), TrainConfig())
