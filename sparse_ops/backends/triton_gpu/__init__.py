"""The GPU engine: Triton kernels over the rows of the active sites.

`conv.py` and `grn.py` hold the ops, the files that begin with their names the kernels and their launches.
Triton is imported when the first op runs, never before.
"""

import importlib.util
import os

import torch

from sparse_ops.backends.triton_gpu.conv import subm_conv2d
from sparse_ops.backends.triton_gpu.grn import global_response_norm, grn_mlp
from sparse_ops.dispatch import Backend, Call
from sparse_ops.rows import downsample_conv2d

__all__ = ["downsample_conv2d", "global_response_norm", "grn_mlp", "reasons", "subm_conv2d"]

# Read once: torch.compile traces `reasons` and follows neither.
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's own switch for running kernels in Python, on any device."""


def reasons(call: Call) -> list[str]:
    """Why this backend cannot run the call; only a caller who names it gets the interpreter on a CPU."""
    found = []
    if not _INSTALLED:
        found.append("triton cannot be imported (pip install triton)")
    device = call.features.device.type
    if device != "cuda" and not _INTERPRETED:
        found.append(
            f"features are on {device}, not cuda (for Triton's interpreter, start Python with "
            "TRITON_INTERPRET=1)"
        )
    elif device != "cuda" and call.backend != Backend.TRITON:
        found.append(f"features are on {device}, where Triton's interpreter is a slow simulator: name it")
    kernel_free = call.op == "downsample_conv2d" or (call.op == "subm_conv2d" and call.groups == 1)
    if call.features.dtype is torch.float64 and not kernel_free:
        found.append("features are float64; its kernels take float32, float16 and bfloat16")
    return found
