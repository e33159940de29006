"""What the folder of a run tells: which configuration it is of, how far it came, and where."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import yaml

from fcmae.ablation.spec import scans_folder
from fcmae.config import DataConfig, FinetuneConfig, PretrainConfig
from fcmae.config_io import from_dict, to_dict
from fcmae.data import write_scans
from fcmae.errors import InputError
from fcmae.machine import describe_machine

RECORD = "ablation.json"
"""Beside a run's config.yaml: the machines it ran on, and why it failed."""
OUTPUT = "output.txt"
"""What a run's processes print."""

# Where a run lies and how it begins are not what it computes.
_NOT_COMPARED = ("run.dir", "resume", "model.weights")
_SCANS = ("data.root", "data.val_root")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers, also after a crash, find the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"--out: expected to write {path}, got: {error.strerror}. Free space or choose another --out."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The content of one of our files; empty where there is none.

    Raises:
        InputError: it was damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"ablate: expected a mapping in {path}, which fcmae wrote, got a damaged file. Delete it to make "
            "it anew."
        )
    return content


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of a run so far, without a line that a crash cut off."""
    path, events = folder / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def is_finished(folder: Path) -> bool:
    """Whether the run in the folder came to its end."""
    return any(event["event"] == "end" for event in read_log(folder))


def require_same_config(config: PretrainConfig | FinetuneConfig, *, scans: bool, spec: Path) -> None:
    """Refuse a folder that holds a run of another configuration: its results would pass for this one's.

    Args:
        config: Of the run that is wanted; its folder is `config.run.dir`.
        scans: Whether the images are the built-in scans, whose folder may move with the run's.
        spec: The ablation's file, for the message.
    Raises:
        InputError: naming the fields that differ.
    """
    path = Path(config.run.dir, "config.yaml")
    if not path.exists():
        return
    try:
        saved = from_dict(type(config), yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (InputError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"ablate: expected the configuration of a run at {path}, got: {reason} Delete its folder to run "
            "it anew, or use another --out."
        ) from None
    ignored = (*_NOT_COMPARED, *(_SCANS if scans else ()))
    there, wanted = _flat(to_dict(saved)), _flat(to_dict(config))
    changed = [
        f"{name} = {json.dumps(there.get(name))} (wanted: {json.dumps(wanted.get(name))})"
        for name in dict.fromkeys((*there, *wanted))
        if name not in ignored and there.get(name) != wanted.get(name)
    ]
    if changed:
        raise InputError(
            f"ablate: expected {path.parent} to hold the run that {spec} describes, got "
            f"{', '.join(changed)}. Restore these, use another --out, or delete the folder to run it anew."
        )


def prepare(config: PretrainConfig | FinetuneConfig) -> Path:
    """Save the configuration to the run's folder, for its command to read, and return the file."""
    path = Path(config.run.dir, "config.yaml")
    write_whole(path, yaml.safe_dump(to_dict(config), sort_keys=False))
    return path


def note_launch(folder: Path) -> None:
    """Add this machine to the run's record, and forget an earlier failure."""
    places = read_json(folder / RECORD).get("measured_on", [])
    _record(folder, measured_on=list(dict.fromkeys((*places, describe_machine()))), failure=None)


def note_failure(folder: Path, reason: str) -> None:
    """Add to the run's record why it failed."""
    _record(folder, **{**read_json(folder / RECORD), "failure": reason})


def _record(folder: Path, **values: Any) -> None:
    write_whole(folder / RECORD, json.dumps(values, indent=1) + "\n")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def hold_out_scans(data: DataConfig, out: Path, *, share: float) -> dict[str, int]:
    """Write the built-in scans as folders, once, and return how many of each split there are.

    Args:
        data: Their size and channels.
        out: The ablation's folder.
        share: Held out.
    Raises:
        InputError: another share was held out before.
    """
    file = scans_folder(out) / "counts.json"
    found = read_json(file)
    if not found:
        digits = dataclasses.replace(data, source="digits", root=None, val_root=None, val_fraction=share)
        found = {"share": share, **write_scans(digits, scans_folder(out))}
        write_whole(file, json.dumps(found) + "\n")
    if found["share"] != share:
        raise InputError(
            f"ablate: expected scans with {share:g} held out in {scans_folder(out)}, got {found['share']:g}. "
            "Use another --out."
        )
    return {"train": found["train"], "val": found["val"]}
