"""`fcmae convert`: a checkpoint of any format becomes verified weights of another."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fcmae.arguments import OptionParser
from fcmae.convert.architecture import Architecture
from fcmae.convert.dense import TARGETS, convert_source
from fcmae.convert.families import SOURCES
from fcmae.convert.files import check_writable, write_weights
from fcmae.convert.fold import fold_layer_norm
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source
from fcmae.convert.verify import BOUND, StageDifference, check_differences
from fcmae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Report):
    """What became of every key, and where the result lies."""

    checkpoint: Path
    """The file that was read; of a run folder, its newest readable checkpoint."""
    out: Path | None
    """The weights that were written; None for a dry run."""
    architecture: Architecture
    differences: list[StageDifference]
    """Source against target, stage by stage; empty when not verified."""
    folded: list[str] = field(default_factory=list)
    """Our names of the LayerNorms that were folded."""


def convert_checkpoint(
    source_path: str | Path,
    out: str | Path | None = None,
    *,
    source: str = "auto",
    target: str = "timm",
    fold: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    force: bool = False,
    log: Callable[[str], object] = print,
) -> ConversionReport:
    """Write a checkpoint's weights in another format.

    Nothing is written unless every key is accounted for and, with `verify`, both networks agree.

    Args:
        source_path: A checkpoint or weight file, or a run folder, whose newest readable checkpoint is taken.
        out: A .safetensors or .pth file; None: `<backbone>_<target>.safetensors` in the run folder.
        source: The format of the checkpoint, or `auto` to tell it from the keys.
        target: `timm`, `official`, `transformers`, `mmpretrain` or `fcmae`.
        fold: Fold LayerNorms into the linear layers behind them.
        verify: Run both networks and compare them before writing.
        dry_run: Log what would become of every key, and write nothing.
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
    path = Path(out) if out is not None else _default_out(opened.path, architecture, target)
    if not dry_run:
        _check_out(path, opened.path, force=force)

    log(f"read     {opened.path}, {opened.format.name} weights of {opened.family.name}")
    state_dict, report = convert_source(opened, architecture, target)
    for line in report.table() if dry_run else report.lines():
        log(line)
    for note in _notes(opened):
        log(f"note     {note}")
    made = {**vars(report), "checkpoint": opened.path, "architecture": architecture}
    if dry_run:
        return ConversionReport(**made, out=None, differences=[])

    form = opened.family.formats[target]
    folded: list[str] = []
    if fold:
        state_dict, folded = fold_layer_norm(state_dict, form, opened.family.folds)
        log(f"folded   {len(folded)} LayerNorms into the layers behind them; their weight is 1, their bias 0")
    differences = opened.family.compare(opened.ours(), state_dict, form, architecture) if verify else []
    for difference in differences:
        log(difference.line())
    check_differences(differences)
    if differences:
        worst = max(differences, key=lambda found: found.relative)
        log(f"verified largest difference {worst.relative:.1e} of the root mean square, allowed {BOUND:.0e}")

    metadata = {"format": "pt", "architecture": json.dumps(asdict(architecture))}
    key = "model" if target == "official" else "state_dict"
    write_weights(path, state_dict, metadata=metadata, force=force, key=key)
    log(f"wrote    {path}, for {architecture.call(target, str(path))}")
    return ConversionReport(**made, out=path, differences=differences, folded=folded)


def _check_out(out: Path, checkpoint: Path, *, force: bool) -> None:
    if out.resolve() == checkpoint.resolve():
        raise InputError(f"out: expected another file than the checkpoint, got {out}. Choose a new name.")
    check_writable(out, force=force)


def _notes(source: Source) -> list[str]:
    notes = [source.format.note] if source.format.note else []
    if source.config is not None and source.config["model"].get("grn_scope") == "batch":
        notes.append("pretrained with grn_scope=batch; the dense model normalises each image by itself")
    return notes


def _default_out(checkpoint: Path, architecture: Architecture, target: str) -> Path:
    folder = checkpoint.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return run / f"{architecture.backbone}_{target}.safetensors"


def build_parser() -> argparse.ArgumentParser:
    """The options of `fcmae convert` and of scripts/convert_sparse_to_dense.py."""
    parser = OptionParser("fcmae convert", "Write a checkpoint's weights in another format, verified.")
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a checkpoint, or a run folder (its newest readable checkpoint)"
    )
    parser.add_argument(
        "--out", metavar="FILE", help=".safetensors or .pth; default: RUN/<backbone>_<target>.safetensors"
    )
    parser.add_argument("--target", choices=TARGETS, default="timm", help="format of FILE (default: timm)")
    parser.add_argument(
        "--source",
        choices=("auto", *SOURCES),
        default="auto",
        help="format of CKPT (default: told by its keys)",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the source and the target and compare them before writing (default: on)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would become of every key, write nothing"
    )
    parser.add_argument(
        "--fold-layer-norm",
        action="store_true",
        help="make the LayerNorms' weights and biases part of the linear layers behind them",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing FILE")
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
        target=arguments.target,
        fold=arguments.fold_layer_norm,
        verify=arguments.verify,
        dry_run=arguments.dry_run,
        force=arguments.force,
    )
    return 0
