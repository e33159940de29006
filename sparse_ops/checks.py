"""Checks of a caller's arguments, all with one message format."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def require(ok: bool, op: str, argument: str, expected: str, actual: object, hint: str = "") -> None:
    """Raise ValueError `<op>: expected <argument> <expected>, got <actual>. <hint>` unless `ok`."""
    if not ok:
        raise ValueError(f"{op}: expected {argument} {expected}, got {actual}. {hint}".rstrip())


def dtype_name(tensor: Tensor) -> str:
    """The dtype without its module: "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device in one phrase."""
    return f"{list(tensor.shape)} {dtype_name(tensor)} on {tensor.device}"


def require_like(op: str, argument: str, tensor: Tensor, other: str, reference: Tensor) -> None:
    """Require the dtype and the device of `reference`."""
    require(
        tensor.dtype == reference.dtype and tensor.device == reference.device,
        op,
        argument,
        f"of {other}'s dtype and device ({dtype_name(reference)} on {reference.device})",
        f"{dtype_name(tensor)} on {tensor.device}",
        f"Move it with {argument}.to({other}), or run under torch.autocast.",
    )


def require_float(op: str, argument: str, tensor: Tensor) -> None:
    """Require a floating-point dtype."""
    require(
        dtype_name(tensor) in FLOAT_DTYPES,
        op,
        argument,
        f"of dtype {', '.join(FLOAT_DTYPES)}",
        dtype_name(tensor),
    )


def require_no_tangents(op: str, *tensors: Tensor | None) -> None:
    """Require inputs without forward-mode derivatives: custom ops have none, and PyTorch would pass zeros."""
    if torch.compiler.is_compiling():
        return
    plain = all(tensor is None or forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors)
    hint = "Take derivatives in reverse mode, or name backend 'reference' where there is one."
    require(plain, op, "inputs", "without forward-mode tangents", "some with them", hint)
