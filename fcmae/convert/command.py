"""`fcmae convert`: a checkpoint of any format becomes verified weights of another."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fcmae.arguments import OptionParser
from fcmae.convert.dense import TARGETS, convert_source
from fcmae.convert.deploy.fold import fold_layer_norm
from fcmae.convert.deploy.onnx_export import OPSET, Features, OnnxOptions, check_onnx, export_onnx
from fcmae.convert.families import SOURCES, Family
from fcmae.convert.files import check_writable, write_weights
from fcmae.convert.networks.network import Network
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source
from fcmae.convert.verify.differences import BOUND, StageDifference, check_differences
from fcmae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Report):
    """What became of every key, and where the result lies."""

    checkpoint: Path
    """The file that was read; of a run folder, its newest readable checkpoint."""
    out: Path | None
    """The weights that were written; None for a dry run, and where only a graph was wanted."""
    architecture: Network
    differences: list[StageDifference]
    """Source against target, stage by stage, and the ONNX graph against PyTorch; empty when not verified."""
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
    onnx: OnnxOptions | None = None,
    force: bool = False,
    log: Callable[[str], object] = print,
) -> ConversionReport:
    """Write a checkpoint's weights in another format.

    Nothing is written unless every key is accounted for and, with `verify`, both networks agree.

    Args:
        source_path: A checkpoint or weight file, or a run folder, whose newest readable checkpoint is taken.
        out: A .safetensors or .pth file; None: `<backbone>_<target>.safetensors` in the run folder, or no
            weights where an ONNX graph is asked for.
        source: The format of the checkpoint, or `auto` to tell it from the keys.
        target: `timm`, `official`, `transformers`, `mmpretrain` or `fcmae`.
        fold: Fold LayerNorms into the linear layers behind them.
        verify: Run both networks and compare them before writing.
        dry_run: Log what would become of every key, and write nothing.
        onnx: Write the dense model as a graph: a classifier, or without a head its last features.
        force: Replace existing files.
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
    path = None
    if out is not None or onnx is None:
        path = Path(out) if out is not None else _default_out(opened.path, architecture, target)
    if path is not None and not dry_run:
        _check_out(path, opened.path, force=force)
    if onnx is not None:
        if opened.family.dense_model is None:
            raise InputError(f"onnx: expected a network that timm has, got {opened.family.name}.")
        check_onnx(onnx, force=force or dry_run)

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
        _check_fold(state_dict, verify=verify)
        state_dict, folded = fold_layer_norm(state_dict, form, opened.family.folds)
        log(f"folded   {len(folded)} LayerNorms into the layers behind them; their weight is 1, their bias 0")
    differences = opened.family.compare(opened.ours(), state_dict, form, architecture) if verify else []
    for difference in differences:
        log(difference.line())
    check_differences(differences)
    if differences:
        worst = max(differences, key=lambda found: found.relative)
        log(f"verified largest difference {worst.relative:.1e} of the root mean square, allowed {BOUND:.0e}")

    if onnx is not None and opened.family.dense_model is not None:
        model = opened.family.dense_model(state_dict, form, architecture, opened.drop_path)
        differences += _write_onnx(model, opened.family, architecture, onnx, log)
    if path is not None:
        metadata = {"format": "pt", "architecture": json.dumps(vars(architecture))}
        key = "model" if target == "official" else "state_dict"
        write_weights(path, state_dict, metadata=metadata, force=force, key=key)
        head = state_dict.get(form.from_ours("head.fc.weight") or "")
        call = architecture.call(target, str(path), num_classes=0 if head is None else len(head))
        log(f"wrote    {path}, for {call}")
    return ConversionReport(**made, out=path, differences=differences, folded=folded)


def _check_fold(weights: Mapping[str, Tensor], *, verify: bool) -> None:
    rough = {tensor.dtype for tensor in weights.values()} & {torch.float16, torch.bfloat16}
    if rough and verify:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in rough))
        raise InputError(
            f"--fold-layer-norm: expected float32 weights, got {names}, whose rounding alone is above what "
            "verification allows. Fold a float32 checkpoint, or add --no-verify."
        )


def _write_onnx(
    model: nn.Module,
    family: Family,
    architecture: Network,
    options: OnnxOptions,
    log: Callable[[str], object],
) -> list[StageDifference]:
    is_classifier = getattr(model, "num_classes", 0) > 0
    network = model if is_classifier else Features(model)
    images = torch.randn(2, *architecture.input_size, generator=torch.Generator().manual_seed(0))
    output = "logits" if is_classifier else "features"
    try:
        found = export_onnx(network, images, options, output=output, dynamic=family.dynamic, log=log)
    except OSError as error:
        raise InputError(
            f"onnx: expected to write {options.path}, got: {error}. Check its folder."
        ) from error
    for difference in found:
        log(difference.line())
    log(f"wrote    {options.path}, opset {options.opset}: images {[*images.shape]} -> {output}")
    return found


def _check_out(out: Path, checkpoint: Path, *, force: bool) -> None:
    if out.resolve() == checkpoint.resolve():
        raise InputError(f"out: expected another file than the checkpoint, got {out}. Choose a new name.")
    check_writable(out, force=force)


def _notes(source: Source) -> list[str]:
    notes = [source.format.note] if source.format.note else []
    if source.average is not None:
        notes.append(f"the file holds an average of the weights, too, as `{source.average}`: not taken")
    if source.config.get("model", {}).get("grn_scope") == "batch":
        notes.append("pretrained with grn_scope=batch; the dense model normalises each image by itself")
    return notes


def _default_out(checkpoint: Path, architecture: Network, target: str) -> Path:
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
    parser.add_argument("--onnx", metavar="FILE", help="write the dense model as an ONNX graph")
    parser.add_argument(
        "--opset", type=int, metavar="N", default=OPSET, help=f"of the graph (default: {OPSET})"
    )
    parser.add_argument("--onnx-fp16", action="store_true", help="the graph in float16")
    parser.add_argument(
        "--fp16-safe-grn", action="store_true", help="in the graph, GRN's statistics in float32"
    )
    parser.add_argument(
        "--remove-drop-path", action="store_true", help="in the graph, no stochastic depth in any mode"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing FILE")
    return parser


def _onnx_options(arguments: argparse.Namespace) -> OnnxOptions | None:
    flags = {
        "--opset": arguments.opset != OPSET,
        "--onnx-fp16": arguments.onnx_fp16,
        "--fp16-safe-grn": arguments.fp16_safe_grn,
        "--remove-drop-path": arguments.remove_drop_path,
    }
    if arguments.onnx is not None:
        return OnnxOptions(
            path=Path(arguments.onnx),
            opset=arguments.opset,
            float16=arguments.onnx_fp16,
            fp16_safe_grn=arguments.fp16_safe_grn,
            remove_drop_path=arguments.remove_drop_path,
        )
    for flag, given in flags.items():
        if given:
            raise InputError(
                f"{flag}: expected --onnx FILE, got none. Weights alone hold no operations: add --onnx."
            )
    return None


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
        onnx=_onnx_options(arguments),
        force=arguments.force,
    )
    return 0
