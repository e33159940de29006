"""The engine of plain PyTorch: tiles with their halo, or the scattered grid, through the dense kernels.

`conv.py` holds the k x k convolution, `grn_mlp.py` the fused block tail; `sparse_ops.rows` what needs no
neighbours.
"""

from sparse_ops.backends.scatter.conv import subm_conv2d
from sparse_ops.backends.scatter.grn_mlp import grn_mlp
from sparse_ops.dispatch import Call
from sparse_ops.rows import downsample_conv2d, global_response_norm

__all__ = ["downsample_conv2d", "global_response_norm", "grn_mlp", "reasons", "subm_conv2d"]


def reasons(call: Call) -> list[str]:
    """Why this backend cannot run the call: never, PyTorch's kernels take every dtype and device."""
    return []
