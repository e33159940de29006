"""Ablations that really train: what is done is skipped, what was interrupted goes on, one failure is one."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from ablation_runs import SPEC, InProcess, write_spec

from fcmae.ablation.harness import run_ablation
from fcmae.ablation.processes import Processes
from fcmae.convert.files import read_checkpoint
from fcmae.errors import InputError


@pytest.fixture(autouse=True)
def _as_users_run() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def log_of(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def test_arms_and_seeds_end_in_one_table_and_are_not_run_again(tmp_path: Path) -> None:
    text = SPEC.replace("leaky:", "dense:").replace("leaky_dense", "masked_dense")
    text = SPEC.replace(
        "leaky:\n    model.execution: leaky_dense", "dense:\n    model.execution: masked_dense"
    )
    text = text.replace("[loss]", "[lowshot_5, loss, knn]") + "hold_out: 0.3\n"
    spec = write_spec(tmp_path, text + "equal: {arms: [sparse, dense], steps: 4, tolerance: 1e-4}\n")
    out = tmp_path / "out"
    execute = InProcess()
    result = run_ablation(spec, out=out, execute=execute)
    assert len(execute.calls) == 8 and all(run.state == "done" for run in result.runs)
    assert result.agreement is not None and result.agreement.holds
    assert result.held_out is not None and sum(result.held_out.values()) == 1797

    found = json.loads((out / "results.json").read_text())
    losses = [log_of(out / "dense" / f"seed_{seed}", "train")[-1]["loss"] for seed in (0, 1)]
    dense = found["table"][1]
    assert dense["arm"] == "dense" and dense["metrics"]["loss"] == [mean(losses), stdev(losses)]
    knn = [json.loads((out / "dense" / f"seed_{seed}" / "scores.json").read_text())["knn"] for seed in (0, 1)]
    assert dense["metrics"]["knn"][0] == mean(knn) and 0.2 < mean(knn) <= 1  # chance: 0.1
    assert any("torch" in place for place in dense["measured_on"])
    order = [log_of(out / arm / "seed_1", "train")[0]["loss"] for arm in ("sparse", "dense")]
    assert abs(order[0] - order[1]) < 1e-5, "the same images, the same masks"

    again = InProcess()
    moved = shutil.move(out, tmp_path / "moved")
    assert run_ablation(spec, out=Path(moved), execute=again).runs == result.runs
    assert again.calls == []


def test_an_interrupted_ablation_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(tmp_path, SPEC.replace("[0, 1]", "[0]"))
    run_ablation(spec, out=tmp_path / "whole", execute=InProcess())

    step, done = torch.optim.AdamW.step, []

    class Killed(BaseException):
        pass

    def failing(*args: Any, **kwargs: Any) -> Any:
        done.append(1)
        if len(done) == 8:  # the second arm, in its last step
            raise Killed
        return step(*args, **kwargs)

    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(torch.optim.AdamW, "step", failing)
        run_ablation(spec, out=out, execute=InProcess())
    states = [run["state"] for run in json.loads((out / "results.json").read_text())["runs"]]
    assert states == ["done", "unfinished"]

    execute = InProcess()
    run_ablation(spec, out=out, execute=execute)
    assert [call[-1].split("/")[-3] for call in execute.calls] == ["leaky"]
    leaky = Path("leaky", "seed_0")
    assert [event["step"] for event in log_of(out / leaky, "start")] == [0, 2]
    weights = [
        read_checkpoint(tmp_path / name / leaky / "checkpoints/newest.pt")["model"]
        for name in ("whole", "out")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_changed_configuration_is_refused_before_anything_runs(tmp_path: Path) -> None:
    spec, out = write_spec(tmp_path), tmp_path / "out"
    run_ablation(spec, out=out, execute=InProcess(), arms=["leaky"])
    before = (out / "leaky" / "seed_0" / "log.jsonl").read_bytes()
    changed = write_spec(tmp_path, SPEC + "changes: {train.base_lr: 0.25, data.crop_scale: [0.5, 1.0]}\n")
    execute = InProcess()
    with pytest.raises(InputError) as refused:
        run_ablation(changed, out=out, execute=execute)
    message = str(refused.value)
    assert "train.base_lr = 0.5 (wanted: 0.25)" in message and "data.crop_scale" in message
    assert "leaky/seed_0" in message and "\n" not in message and "run.dir" not in message
    assert execute.calls == [] and (out / "leaky" / "seed_0" / "log.jsonl").read_bytes() == before


def test_a_failed_arm_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    """The engine's own refusal of a patch that the image does not hold; it is tried again next time."""
    text = SPEC.replace("sparse:\n", "sparse:\n    model.patch_size: 96\n").replace("[0, 1]", "[0]")
    spec, out = write_spec(tmp_path, text), tmp_path / "out"
    result = run_ablation(spec, out=out, execute=InProcess())
    failed, done = result.runs
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.error is not None and failed.error.startswith("pretrain: ") and "96" in failed.error
    page = (out / "report.html").read_text()
    assert "sparse, seed 0 failed: pretrain: " in page and failed.error.split(".")[0] in page
    again = InProcess()
    run_ablation(spec, out=out, execute=again)
    assert [Path(call[-1]).parts[-3] for call in again.calls] == ["sparse"]


def test_fine_tuning_follows_from_the_arm_s_own_weights(tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text(
        "data: {source: digits, image_size: 64, in_chans: 1, workers: 0, labels_per_class: 2}\n"
        "model: {backbone: convnextv2_atto}\n"
        "train: {steps: 1, batch_size: 4, warmup_steps: 0}\nrun: {accelerator: cpu}\n"
    )
    text = SPEC.replace("[loss]", "[finetune]").replace("[0, 1]", "[0]") + "finetune: tune.yaml\n"
    text = text.replace("sparse:\n", "sparse:\n    finetune.train.steps: 2\n")
    spec, out = write_spec(tmp_path, text), tmp_path / "out"
    result = run_ablation(spec, out=out, execute=InProcess())
    assert [run.state for run in result.runs] == ["done", "done"]
    for arm, steps in (("sparse", 2), ("leaky", 1)):
        folder = out / arm / "seed_0"
        evaluated = log_of(folder / "finetune", "eval")[-1]
        assert evaluated["step"] == steps
        assert f"weights: {folder}\n" in (folder / "finetune" / "config.yaml").read_text()
    assert result.runs[1].metrics == {"finetune": evaluated["accuracy"]}


def test_a_process_of_its_own_counts_its_own_memory(tmp_path: Path) -> None:
    ballast = b"1" * 2**30
    spec, out = write_spec(tmp_path, SPEC.replace("[0, 1]", "[0]")), tmp_path / "out"
    with Processes() as execute:
        result = run_ablation(spec, out=out, execute=execute, arms=["sparse"])
    run = result.runs[0]
    assert run.state == "done", (out / "sparse" / "seed_0" / "output.txt").read_text()
    assert run.peak_memory_mb is not None and run.peak_memory_mb < 1024 + len(ballast) / 2**20


def test_signals_reach_the_process_and_end_the_ablation(tmp_path: Path) -> None:
    with Processes() as execute:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        code = execute("timeit", ["-n", "1", "__import__('time').sleep(60)"], tmp_path / "output.txt")
        timer.join()
    assert code == -signal.SIGTERM and execute.received == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    """The second is refused while the first lives, also when what started the first does not."""
    output = tmp_path / "output.txt"
    with output.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=file)
    arguments = ["-n", "1", "1"]
    with Processes() as execute:
        with pytest.raises(InputError, match="expected no other process"):
            execute("timeit", arguments, output)
        orphan.communicate(b"\n")
        assert execute("timeit", arguments, output) == 0
