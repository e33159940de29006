"""What something was measured on: hardware, PyTorch, and the commit of this package."""

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Versions and hardware: "torch", "python", "processor", "cores" and, where there is one, "gpu"."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    facts["processor"] = _processor()
    facts["cores"] = os.cpu_count()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def describe_machine(facts: dict[str, Any] | None = None) -> str:
    """One line of hardware, PyTorch and commit.

    Args:
        facts: What `machine` returned, maybe with a "commit"; None: this machine and this package.
    """
    if facts is None:
        facts = {**machine(), "commit": source_commit()}
    hardware = facts.get("gpu") or f"{facts['processor']}, {facts['cores']} cores"
    commit = facts.get("commit")
    return f"{hardware}, torch {facts['torch']}" + (f", commit {commit}" if commit else "")


def source_commit() -> str | None:
    """The commit of this package, and whether files were changed since; None: it is no checkout."""
    here = Path(__file__)
    if _git(here.parent, ["ls-files", "--error-unmatch", here.name]) is None:
        return None  # installed, maybe below another project's checkout
    commit = _git(here.parent, ["rev-parse", "--short=12", "HEAD"])
    changed = _git(here.parent, ["status", "--porcelain", "--untracked-files=no"])
    return f"{commit} with local changes" if changed else commit


def _git(folder: Path, arguments: Iterable[str]) -> str | None:
    """What git says in the folder; None: it refuses, or there is no git."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
