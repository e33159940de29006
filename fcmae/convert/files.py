"""Reading and writing weight files; nothing here runs code that a file brings along."""

import argparse
import contextlib
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fcmae.errors import InputError

_STEP_FILE = re.compile(r"step_(\d+)\.pt")


def _refuse(path: Path, what: str, advice: str) -> InputError:
    return InputError(f"checkpoint: expected a weight file, got {what} at {path}. {advice}")


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The dictionary that a checkpoint holds, tensors on the CPU.

    A `.safetensors` file gives its state dict; any other file is read by `torch.load(weights_only=True)`, so
    that only tensors and plain containers are ever built, and argparse.Namespace, in which the original
    projects save their options.

    Args:
        path: A file written by this project, by torch.save or by safetensors.
        mmap: Leave the tensors in the file until they are used, where it allows it; the file must stay as it
            is meanwhile.
    Returns:
        The outermost dictionary, as it was saved.
    Raises:
        InputError: the file is missing, empty, truncated, no checkpoint, or holds more than plain data.
    """
    path = Path(path)
    head = _read_head(path)
    # Sorted out before any reader sees them: what a failed download leaves behind.
    if not head:
        raise _refuse(path, "an empty file", "Copy or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise _refuse(path, "a Git LFS pointer (the text that stands for the file)", "Run: git lfs pull.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _refuse(path, "a web page", "Download the file itself, not its page.")

    try:
        content = (
            _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path, head, mmap=mmap)
        )
    except OSError as error:
        raise _refuse(
            path, f"an unreadable file ({error.strerror})", "Check its permissions and disk."
        ) from error
    if not isinstance(content, dict):
        raise _refuse(path, f"a saved {type(content).__name__}", "Save a state dict.")
    return content


def _read_head(path: Path) -> bytes:
    if os.path.isdir(path):  # False, not an error, for a path that no system call takes
        raise _refuse(path, "a folder", "Name one of its files.")
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError as error:
        raise _refuse(path, "nothing", "Check the path.") from error
    except OSError as error:
        raise _refuse(
            path, f"an unreadable file ({error.strerror})", "Check its permissions and disk."
        ) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except SafetensorError as error:
        raise _refuse(
            path, f"a truncated or foreign .safetensors file ({error})", "Copy or download it again."
        ) from error


def _load_torch(path: Path, head: bytes, *, mmap: bool) -> Any:
    is_zip, is_pickle = head.startswith(b"PK\x03\x04"), head.startswith(b"\x80")
    if is_zip and not zipfile.is_zipfile(path):  # a zip's table of contents is its end
        raise _refuse(path, "a truncated checkpoint", "Use an earlier one, or copy it again.")
    if not is_zip and not is_pickle:
        raise _refuse(path, "a file that is no checkpoint", "Name a .pt, .pth or .safetensors file.")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols; the outcome is judged below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except OSError:
        raise
    except Exception as error:  # damaged input ends in KeyError, EOFError, RuntimeError, UnpicklingError ...
        what, advice = _explain(error)
        raise _refuse(path, what, advice) from error


def _explain(error: Exception) -> tuple[str, str]:
    """(what the file is, what to do) from torch.load's complaint."""
    message = str(error)
    if "TorchScript" in message:
        return "a TorchScript program", "Save its state dict."
    if "Weights only load failed" in message:
        found = re.search(r"GLOBAL ([\w.]+)", message)
        name = f" ({found[1]})" if found else ""
        return (
            f"objects other than tensors and plain data{name}",
            "Reading them runs code: save a state dict.",
        )
    if isinstance(error, EOFError) or "unexpected EOF" in message or "PytorchStreamReader" in message:
        return "a truncated or damaged checkpoint", "Use an earlier one, or copy it again."
    return "a file that is no checkpoint", "Name a .pt, .pth or .safetensors file."


def checkpoints_of(folder: str | Path) -> list[Path]:
    """The files `step_*.pt` of a run folder, or of its `checkpoints` folder, newest step first."""
    folder = Path(folder)
    inner = folder / "checkpoints"
    files = (inner if os.path.isdir(inner) else folder).glob("step_*.pt")
    numbered = [(int(found[1]), path) for path in files if (found := _STEP_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the largest step, good or not, of a run folder or its `checkpoints` folder."""
    return next(iter(checkpoints_of(folder)), None)


def require_intact(path: Path) -> None:
    """Compare a torch.save file with the checksums in it; torch.load itself does not look at them.

    Files of other formats have none and pass.

    Raises:
        InputError: a part of the file is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise _refuse(path, f"a damaged checkpoint (the checksum of {damaged})", "Use an earlier one.")


def read_newest_checkpoint(
    folder: str | Path, *, mmap: bool = False
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint that can be read and whose checksums hold.

    Args:
        folder: A run folder or its `checkpoints` folder.
        mmap: See read_checkpoint.
    Returns:
        (path, content, one line for each newer file that was refused), or None where there is no checkpoint.
    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    refused: list[str] = []
    for path in checkpoints_of(folder):
        try:
            content = read_checkpoint(path, mmap=mmap)
            require_intact(path)
            return path, content, refused
        except InputError as error:
            refused.append(str(error))
    if refused:
        raise InputError(
            f"checkpoint: expected a readable file in {folder}, got {len(refused)} damaged ones: {refused[0]}"
        )
    return None


def check_writable(path: str | Path, *, force: bool) -> None:
    """Raise InputError unless `path` has a known suffix and, without `force`, replaces nothing."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise InputError(f"out: expected a name ending in .safetensors or .pth, got {path}. Rename it.")
    if os.path.isdir(path):
        raise InputError(f"out: expected a file, got a folder at {path}. Name a file in it.")
    if os.path.exists(path) and not force:
        raise InputError(
            f"out: expected a new file, got an existing one at {path}. Use --force to replace it."
        )


def write_weights(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str],
    force: bool,
    key: str = "state_dict",
) -> None:
    """Write weights so that `path` holds all of them or what it held before.

    `.safetensors` stores `metadata` in its header; `.pth` is `{key: ..., "metadata": ...}`: timm and
    mmpretrain read `state_dict`, the original projects `model`.

    Raises:
        InputError: the suffix is neither, `path` exists and `force` is off, or the system refuses to write.
    """
    path = Path(path)
    check_writable(path, force=force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: a rename stays on one disk
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask wants it; safetensors writes 0600
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(tensors, temporary, metadata=dict(metadata))
        else:
            torch.save({key: tensors, "metadata": dict(metadata)}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:  # the two savers wrap a full disk in their own
        raise InputError(f"out: expected to write {path}, got: {error}. Check its folder.") from error
    finally:
        with contextlib.suppress(OSError):  # renamed already, or never made
            temporary.unlink()
