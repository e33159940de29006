"""`fcmae convert`: a pretraining checkpoint becomes weights of a dense timm model."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fcmae.arguments import OptionParser
from fcmae.convert.architecture import Architecture
from fcmae.convert.dense import convert_source
from fcmae.convert.families import SOURCES
from fcmae.convert.files import check_writable, write_weights
from fcmae.convert.report import Report
from fcmae.convert.source import open_source
from fcmae.convert.verify import BOUND, StageDifference, check_differences, compare_outputs
from fcmae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Report):
    """What became of every key, and where the result lies."""

    checkpoint: Path
    """The file that was read; of a run folder, its newest readable checkpoint."""
    out: Path
    architecture: Architecture
    differences: list[StageDifference]
    """Sparse against dense, stage by stage; empty when not verified."""


def convert_checkpoint(
    source_path: str | Path,
    out: str | Path | None = None,
    *,
    source: str = "auto",
    verify: bool = True,
    force: bool = False,
    log: Callable[[str], object] = print,
) -> ConversionReport:
    """Write the dense timm weights of a pretrained encoder.

    Nothing is written unless every key is accounted for and, with `verify`, both networks agree.

    Args:
        source_path: A checkpoint or weight file, or a run folder, whose newest readable checkpoint is taken.
        out: A .safetensors or .pth file; None: `<backbone>_timm.safetensors` in the run folder.
        source: `fcmae`, `timm`, or `auto` to tell it from the keys.
        verify: Run both networks and compare them before writing.
        force: Replace an existing `out`.
        log: Receives each line of the account.
    Returns:
        What became of every key, and where the result lies.
    Raises:
        InputError: the source cannot be read or does not match, the outputs differ, or `out` exists.
    """
    opened = open_source(source_path, source=source)
    assert opened.path is not None  # it was a path
    for line in opened.refused:
        log(f"refused  {line}")
    architecture = opened.architecture()
    target = Path(out) if out is not None else _default_out(opened.path, architecture)
    if target.resolve() == opened.path.resolve():
        raise InputError(f"out: expected another file than the checkpoint, got {target}. Choose a new name.")
    check_writable(target, force=force)

    log(f"read     {opened.path}")
    state_dict, report = convert_source(opened, architecture, "timm")
    for line in report.lines():
        log(line)
    if opened.config is not None and opened.config["model"].get("grn_scope") == "batch":
        log("note     pretrained with grn_scope=batch; the dense model normalises each image by itself")
    differences = compare_outputs(opened.weights, state_dict, architecture) if verify else []
    for difference in differences:
        log(difference.line())
    check_differences(differences)
    if differences:
        worst = max(differences, key=lambda found: found.relative)
        log(f"verified largest difference {worst.relative:.1e} of the root mean square, allowed {BOUND:.0e}")

    metadata = {"format": "pt", "architecture": json.dumps(asdict(architecture))}
    write_weights(target, state_dict, metadata=metadata, force=force)
    log(f"wrote    {target}, for {_timm_call(target, architecture)}")
    return ConversionReport(
        **vars(report), checkpoint=opened.path, out=target, architecture=architecture, differences=differences
    )


def _default_out(checkpoint: Path, architecture: Architecture) -> Path:
    folder = checkpoint.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return run / f"{architecture.backbone}_timm.safetensors"


def _timm_call(out: Path, architecture: Architecture) -> str:
    """How a reader makes the model that the weights fit."""
    if not architecture.has_timm_stem:
        return f'fcmae.convert.open_source("{out}").architecture().create_timm()'
    options = "".join(f", {name}={value}" for name, value in architecture.timm_options().items())
    return f'timm.create_model("{architecture.backbone}"{options})'


def build_parser() -> argparse.ArgumentParser:
    """The options of `fcmae convert` and of scripts/convert_sparse_to_dense.py."""
    parser = OptionParser("fcmae convert", "Write a pretrained sparse encoder as dense timm weights.")
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a checkpoint, or a run folder (its newest readable checkpoint)"
    )
    parser.add_argument(
        "--out", metavar="FILE", help=".safetensors or .pth; default: RUN/<backbone>_timm.safetensors"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the sparse and the dense network and compare them before writing (default: on)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing FILE")
    parser.add_argument(
        "--source",
        choices=("auto", *SOURCES),
        default="auto",
        help="format of CKPT (default: told by its keys)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the weights were written.

    Raises:
        InputError: an option, or what convert_checkpoint refuses; the `fcmae` command makes a line and exit
            code 2 of it.
    """
    arguments = build_parser().parse_args(argv)
    convert_checkpoint(
        arguments.checkpoint,
        arguments.out,
        source=arguments.source,
        verify=arguments.verify,
        force=arguments.force,
    )
    return 0
