"""What the tests of the training runs look at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fcmae.training.engine.checkpoints import newest_checkpoint


def last_state(run_dir: str | Path) -> dict[str, Any]:
    found = newest_checkpoint(run_dir)
    assert found is not None
    return found[1]


def events(run_dir: str | Path, event: str) -> list[dict[str, Any]]:
    lines = (Path(run_dir) / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def assert_same_tensors(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, dict):
            assert_same_tensors(value, right[name])
        else:
            assert torch.equal(value, right[name]), name


class Interruption(Exception):
    pass


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Raise in the middle of step `steps` + 1, its gradient computed and its weights not yet stepped."""
    step, done = torch.optim.AdamW.step, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        if len(done) == steps:
            raise Interruption
        done.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
