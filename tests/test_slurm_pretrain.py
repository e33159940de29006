"""The job that Slurm starts, on submitit's local executor: preempted, it goes on by itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcmae.errors import InputError, ProcessLostError

ROOT = Path(__file__).parents[1]
TINY = """
data: {source: digits, image_size: 64, workers: 0}
model: {backbone: convnextv2_atto, depths: [1, 1, 1, 1], dims: [8, 8, 16, 16], decoder_dim: 16}
train: {steps: 400, batch_size: 4, checkpoint_every: 1000, log_every: 1}
run: {accelerator: cpu}
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """The script as a module that the job can import too."""
    pytest.importorskip("submitit")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "scripts"), str(ROOT)]))
    import slurm_pretrain

    yield slurm_pretrain
    del sys.modules["slurm_pretrain"]


def events(run: Path, name: str) -> list[dict]:
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


def test_a_preempted_job_saves_and_goes_on_by_itself(script, tmp_path: Path):
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(TINY)
    job = script.submit(["--cluster", "local", "--", "--config", str(config), f"--run.dir={run}"])
    while not events(run, "train"):
        assert not job.done(), job.stderr()
        time.sleep(0.05)
    (task,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    assert job.result() == str(run)
    (stopped,) = events(run, "stopped")
    assert stopped["request"] == "SIGUSR2" and stopped["step"] < 400
    assert [line["step"] for line in events(run, "start")] == [0, stopped["step"]]
    assert [line["step"] for line in events(run, "train")] == list(range(1, 401))
    assert len(events(run, "end")) == 1


def test_mistakes_do_not_wait_in_the_queue(script):
    with pytest.raises(InputError, match=r"expected a configuration key, got train\.stps"):
        script.submit(["--cluster", "local", "--", "--train.stps=3"])
    with pytest.raises(InputError, match="expected one process with --cluster local, got 2 x 1 nodes"):
        script.submit(["--cluster", "local", "--", "--data.source=digits", "--run.devices=2"])
    with pytest.raises(InputError, match="unrecognized arguments: --partitoin"):
        script.submit(["--partitoin", "gpu"])


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm's programs; the folder of what they read and write."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    programs = {
        "sbatch": f'cp "$1" {folder}/submitted.sh; echo Submitted batch job 12',
        "srun": f"exit $(cat {folder}/code)",
        "squeue": f"cat {folder}/state",
        "scontrol": f"echo $* >> {folder}/called",
    }
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_slurm_starts_a_process_for_each_device(script, slurm: Path, tmp_path: Path):
    options = ["--partition", "gpu", "--minutes", "90", "--save-seconds", "60"]
    run = ["--data.source=digits", f"--run.dir={tmp_path}/run", "--run.devices=8", "--run.nodes=2"]
    assert script.submit([*options, "--", *run]).job_id == "12"
    lines = set((slurm / "submitted.sh").read_text().splitlines())
    wanted = {"nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "partition=gpu", "time=90", "signal=USR2@60"}
    assert {f"#SBATCH --{option}" for option in (*wanted, "requeue")} <= lines, lines


def test_a_job_that_lost_a_process_is_queued_again_while_it_gets_on(script, slurm: Path, tmp_path: Path):
    run = tmp_path / "a run"
    script.submit(["--", "--data.source=digits", f"--run.dir={run}"])
    (run / "checkpoints").mkdir(parents=True)

    def requeued(code: int, *, state: str = "RUNNING") -> bool:
        """Whether the batch file queues the job again when srun ends so; it says what it does in a line."""
        (slurm / "code").write_text(str(code))
        (slurm / "state").write_text(state)
        (slurm / "called").write_text("")
        ended = subprocess.run(
            ["bash", slurm / "submitted.sh"],
            env={**os.environ, "SLURM_JOB_ID": "12"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == code
        assert ended.stderr.count("\n") == (code in (75, 137)), ended.stderr
        called = (slurm / "called").read_text()
        assert called in ("", "requeue 12\n")
        return bool(called)

    assert not requeued(0) and not requeued(1) and not requeued(255)  # done, a mistake, queued already
    assert not requeued(137, state="COMPLETING")  # scancel
    assert [requeued(code) for code in (75, 137, 75, 75)] == [True, True, True, False]
    (run / "checkpoints" / "step_00000010.pt").touch()
    assert [requeued(75) for _ in range(4)] == [True, True, True, False]


def test_a_process_that_lost_another_ends_with_its_code(script, monkeypatch: pytest.MonkeyPatch, capsys):
    def lose(config: object) -> None:
        raise ProcessLostError("run: expected every process to answer")

    monkeypatch.setattr("fcmae.training.pretrain.pretrain", lose)
    with pytest.raises(SystemExit) as ended:
        script.Pretraining(["--data.source=digits"])()
    assert ended.value.code == 75
    assert capsys.readouterr().err == "slurm_pretrain.py: run: expected every process to answer\n"
