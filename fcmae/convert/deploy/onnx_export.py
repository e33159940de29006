"""The dense model as an ONNX graph, checked by running it where onnxruntime is installed."""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fcmae.convert.deploy.modules import is_deterministic, make_grn_fp16_safe, remove_drop_path
from fcmae.convert.verify.differences import StageDifference, differences
from fcmae.errors import InputError

OPSET = 18
"""The oldest version of the operators that PyTorch's exporter writes."""
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest difference of an output, as a share of their root mean square, against float32 by PyTorch."""
_PROTOBUF_LIMIT = 2**31 - 2**20


class Features(nn.Module):
    """A timm model's features before its head, [B, C, h, w] or [B, T, C]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Features of images [B, C, H, W]."""
        return cast(Any, self.model).forward_features(images)


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """What graph is written where."""

    path: Path
    opset: int = OPSET
    float16: bool = False
    """Weights, input and output in float16."""
    fp16_safe_grn: bool = False
    """GRN's statistics in float32 whatever the graph's type."""
    remove_drop_path: bool = False
    """Without stochastic depth, which the exported evaluation mode skips anyway."""


def check_onnx(options: OnnxOptions, *, force: bool) -> None:
    """Raise InputError unless the graph can be written."""
    path, opset = options.path, options.opset
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f"onnx: expected the packages onnx and onnxscript, got no {' and no '.join(absent)}. "
            "Run: pip install onnx onnxscript."
        )
    if opset < OPSET:
        raise InputError(f"opset: expected at least {OPSET}, got {opset}. PyTorch's exporter starts there.")
    if path.suffix != ".onnx":
        raise InputError(f"onnx: expected a name ending in .onnx, got {path}. Rename it.")
    taken = [file for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]
    if taken and not force:
        raise InputError(
            f"onnx: expected a new file, got an existing one at {taken[0]}. Use --force to replace it."
        )


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    images: Tensor,
    options: OnnxOptions,
    *,
    output: str,
    dynamic: tuple[int, ...] = (0,),
    log: Callable[[str], object] = print,
) -> list[StageDifference]:
    """Write a model's graph, after it has computed what the model computes.

    Args:
        model: In evaluation mode, float32; it is changed in place as the options say.
        images: Input to trace and to compare with, float32.
        options: Where and how. Above 2 GiB the weights lie beside the graph in `<name>.data`.
        output: Name of the output.
        dynamic: Axes of the input that may have any size.
        log: Receives a line for each change, and when onnxruntime is not installed to run the graph.
    Returns:
        How far onnxruntime is from PyTorch in float32; empty without it.
    Raises:
        InputError: the exporter fails, the graph has another opset, or its outputs differ.
    """
    path, opset = options.path, options.opset
    expected = model(images)
    if options.remove_drop_path:
        log(f"removed  {remove_drop_path(model)} drop paths")
        if not is_deterministic(model, images):
            raise InputError(
                "onnx: expected the same outputs in training mode, got others: a layer is random."
            )
    if options.fp16_safe_grn:
        log(f"replaced {make_grn_fp16_safe(model)} GRN layers by ones with float32 statistics")
        _check(differences("float32 statistics", {output: model(images)}, [expected]), BOUNDS[torch.float32])
    dtype = torch.float16 if options.float16 else torch.float32
    model.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        try:
            program = torch.onnx.export(
                model,
                (images.to(dtype),),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=[output],
                dynamic_shapes=({axis: torch.export.Dim.DYNAMIC for axis in dynamic},),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise InputError(
                f"onnx: expected a model that PyTorch exports, got: {str(error).splitlines()[0]}."
            ) from error
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:
        raise InputError(f"opset: expected {written}, what the exporter writes, got {opset}. Change --opset.")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        program.save(temporary, external_data=size > _PROTOBUF_LIMIT)
        found: list[StageDifference] = []
        if importlib.util.find_spec("onnxruntime") is None:
            log("note     onnxruntime is not installed: the graph was written but not run")
        else:
            actual = _run(temporary, images.to(dtype))
            found = differences("onnxruntime against PyTorch", {output: actual}, [expected])
            _check(found, BOUNDS[dtype])
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.suffix == ".onnx"):
            os.replace(file, path.with_name(file.name))
    return found


def _run(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.numpy()})
    return torch.as_tensor(output).float()


def _check(found: list[StageDifference], bound: float) -> None:
    worst = max(found, key=lambda difference: difference.relative)
    if not worst.relative <= bound:  # NaN fails too
        raise InputError(
            f"onnx: expected outputs within {bound:.0e} of the root mean square, got {worst.relative:.1e}. "
            "In float16 add --fp16-safe-grn; nothing was written."
        )
