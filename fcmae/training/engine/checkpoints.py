"""Writing checkpoints whole or not at all, and finding the one to go on from."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fcmae.config import METHOD_CONFIGS, ClassifierConfig
from fcmae.config_io import to_dict
from fcmae.convert.files import checkpoints_of, read_checkpoint, read_newest_checkpoint
from fcmae.errors import InputError

FORMAT = "fcmae-1"
NEWEST = "newest.pt"
"""A link to the newest checkpoint, beside it."""

# Fields outside `model` that decide what the network is, and fields inside that do not.
_ALSO_MODEL = ("data.image_size", "data.in_chans", "data.num_classes")
_NOT_MODEL = ("model.backend", "model.weights")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: a checkpoint's content, or nothing at step 0."""

    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    refused: tuple[str, ...] = ()
    """A line for each newer checkpoint that could not be read."""


def checkpoint_folder(run_dir: str | Path) -> Path:
    """`<run>/checkpoints`."""
    return Path(run_dir) / "checkpoints"


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, step: int, keep: int) -> Path:
    """Write `<folder>/step_<step>.pt` and delete all but the `keep` newest up to it.

    The file is written under another name, forced to the disk and renamed, so that a crash or a full disk
    leaves the checkpoints as they were. It holds a checksum of each of its parts, as every file of torch.save
    does, and `newest.pt` points to it. Files of a later step are left alone: one is there when it was
    refused as damaged.

    Args:
        folder: `<run>/checkpoints`; made where it is missing.
        state: Tensors and plain containers, readable with torch.load(weights_only=True). "format" and "step"
            are added.
        step: Optimiser steps done.
        keep: How many files stay.
    Returns:
        The new file.
    Raises:
        InputError: the system refuses to write; no trace of the attempt is left.
    """
    path = folder / f"step_{step:08d}.pt"
    # In the same folder, as a rename stays on one disk; a killed run's is overwritten when it is resumed.
    temporary = folder / f".{path.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _point_to(path)
        _sync_folder(folder)
        for old in [file for file in checkpoints_of(folder) if file <= path][keep:]:
            old.unlink()
    except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
        raise InputError(
            f"checkpoint: expected to write {path}, got: {' '.join(str(error).split())}. "
            "Free space or choose another --run.dir; earlier checkpoints are untouched."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # renamed already, or never made
            temporary.unlink()
    return path


def _point_to(path: Path) -> None:
    """Let `newest.pt` name `path`; readers find the old one or the new one, never none."""
    link = path.parent / f".{NEWEST}.tmp"
    link.unlink(missing_ok=True)  # a killed run's
    link.symlink_to(path.name)
    os.replace(link, path.parent / NEWEST)


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """The content of one of our checkpoints.

    Args:
        path: The file.
        kind: "pretrain" or "finetune" to insist on, or None.
    Raises:
        InputError: the file is missing, truncated, not ours, or of the other kind.
    """
    return _check(path, read_checkpoint(path), kind=kind)


def newest_checkpoint(
    folder: str | Path, *, kind: str | None = None
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest good checkpoint of a run: (path, content, a line for each newer file refused), or None.

    Raises:
        InputError: there are checkpoints, and none is good, or the newest good one is not ours or of the
            other kind.
    """
    found = read_newest_checkpoint(folder)
    if found is None:
        return None
    path, state, refused = found
    return path, _check(path, state, kind=kind), refused


def _check(path: str | Path, state: dict[str, Any], *, kind: str | None) -> dict[str, Any]:
    if state.get("format") != FORMAT:
        raise InputError(
            f"resume: expected a checkpoint of format {FORMAT}, got {state.get('format')} at {path}. "
            "Name a file that pretraining or fine-tuning wrote."
        )
    if kind is not None and state["kind"] != kind:
        raise InputError(
            f"resume: expected a checkpoint of kind {kind}, got {state['kind']} at {path}. "
            "Use another --run.dir."
        )
    return state


def find_start(resume: str, run_dir: str | Path, *, kind: str, config: Mapping[str, Any]) -> Start:
    """Where the run begins, by the rules of `resume`.

    "auto": the newest good checkpoint of `run_dir`, or step 0 where there is none. "none": step 0, refused
    while the folder holds checkpoints, since the new run would overwrite them. Otherwise a checkpoint's
    path, refused while `run_dir` holds a later one, which "auto" would prefer to the new run's.

    Args:
        resume: "auto", "none" or a path.
        run_dir: The run's folder.
        kind: "pretrain" or "finetune".
        config: The resolved configuration as nested dictionaries; must describe the checkpoint's model.
    Raises:
        InputError: as above; no checkpoint is good; or the configuration describes another model.
    """
    there = checkpoints_of(run_dir)
    if resume == "none":
        if there:
            raise InputError(
                f"run.dir: expected a folder without checkpoints for --resume none, got {there[0]}. "
                "Use another --run.dir, or --resume auto to go on."
            )
        return Start()
    if resume == "auto":
        found = newest_checkpoint(run_dir, kind=kind)
        if found is None:
            return Start()
        path, state, refused = found
    else:
        path, state, refused = Path(resume), load_checkpoint(resume, kind=kind), []
        later = [file for file in there if file > checkpoint_folder(run_dir) / f"step_{state['step']:08d}.pt"]
        if later:
            raise InputError(
                f"resume: expected no later checkpoint in run.dir, got {later[0]}. "
                "Use another --run.dir to branch off, or move the later ones away."
            )
    require_same_model(state["config"], config, path=path)
    return Start(step=state["step"], state=state, path=path, refused=tuple(refused))


def require_same_model(saved: Mapping[str, Any], config: Mapping[str, Any], *, path: Path) -> None:
    """Raise InputError, naming the fields, where `config` describes another model than `saved`.

    The optimiser, the schedule, the length and the place of a run may change when it is resumed. A field that
    a checkpoint of an earlier version lacks had today's default.
    """
    method = saved["model"].get("method")
    defaults = to_dict(METHOD_CONFIGS[method]() if method else ClassifierConfig())
    later = {name: value for name, value in defaults.items() if name in config["model"]}
    saved = {**saved, "model": {**later, **saved["model"]}}
    of_model = {f"model.{name}" for name in (*saved["model"], *config["model"])}
    names = [*sorted(of_model.difference(_NOT_MODEL)), *_ALSO_MODEL]
    changed = [
        f"{name} = {_value(saved, name)} (got {_value(config, name)})"
        for name in names
        if _value(saved, name) != _value(config, name)
    ]
    if changed:
        raise InputError(
            f"resume: expected the model of {path}, {', '.join(changed)}. "
            "Restore these, or use another --run.dir to start anew."
        )


def require_same_classes(start: Start, classes: tuple[str, ...]) -> None:
    """Raise InputError where a resumed classifier knows other classes, or the same in another order."""
    if start.state and start.state["classes"] != list(classes):
        raise InputError(
            f"resume: expected the {len(start.state['classes'])} classes of {start.path}, got {len(classes)} "
            "that are not the same. Restore data.root, or use another --run.dir to start anew."
        )


def _value(config: Mapping[str, Any], name: str) -> str:
    section, field_name = name.split(".")
    return json.dumps(
        config[section].get(field_name)
    )  # a tuple and the list that YAML makes of it are the same
