"""Ablations of seconds: a network of four blocks on 64 px digits, run in the test's own process."""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fcmae import cli
from fcmae.ablation import score
from fcmae.ablation.spec import AblationSpec, load_spec

CONFIGS = Path(__file__).parents[3] / "configs"

BASE = """
data: {source: digits, image_size: 64, in_chans: 1, workers: 0}
model: {backbone: convnextv2_atto, depths: [1, 1, 1, 1], dims: [8, 8, 16, 16], decoder_dim: 16}
train: {steps: 4, batch_size: 4, warmup_steps: 1, base_lr: 0.5, checkpoint_every: 2, log_every: 1}
run: {accelerator: cpu}
"""

SPEC = """
title: Dense against sparse
base: base.yaml
arms:
  sparse:
  leaky:
    model.execution: leaky_dense
seeds: [0, 1]
metrics: [loss]
"""


MODULES = {"fcmae": cli.main, "fcmae.ablation.score": score.main}


def write_spec(folder: Path, text: str = SPEC) -> AblationSpec:
    (folder / "base.yaml").write_text(BASE)
    (folder / "spec.yaml").write_text(text)
    return load_spec(folder / "spec.yaml")


class InProcess:
    """Runs every stage in this process, and keeps what it was asked to."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, module: str, arguments: Sequence[str], output: Path) -> int:
        self.calls.append((module, *arguments))
        printed = io.StringIO()
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                return MODULES[module](list(arguments))
        finally:
            with output.open("a") as file:
                file.write(printed.getvalue())


class Scripted(InProcess):
    """Writes a log with these losses instead of training; a string is what fails, an integer an exit code."""

    def __init__(self, losses: Mapping[tuple[str, int], list[float] | str | int]) -> None:
        super().__init__()
        self.losses = dict(losses)

    def __call__(self, module: str, arguments: Sequence[str], output: Path) -> int:
        self.calls.append((module, *arguments))
        folder = Path(arguments[-1]).parent
        found = self.losses[folder.parent.name, int(folder.name.removeprefix("seed_"))]
        if isinstance(found, int):
            return found
        if isinstance(found, str):
            output.write_text(f"10%|#   | 3/30\rfcmae: {found}\n")
            return 2
        write_log(folder, found)
        return 0


def write_log(folder: Path, losses: Sequence[float], **values: Any) -> None:
    """A finished run's log: 8 images a step at 16 images a second, a quarter of the time waiting."""
    known = {"images_per_second": 16.0, "data_wait": 0.25, "memory_mb": 500.0, **values}
    events = [
        {"event": "start", "step": 0, "devices": 1, "parameters": 1000},
        *({"event": "train", "step": at, "loss": loss, **known} for at, loss in enumerate(losses, start=1)),
        {"event": "end", "step": len(losses)},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
