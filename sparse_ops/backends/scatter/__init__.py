"""The engine of plain PyTorch: tiles with their halo, or the scattered grid, through the dense kernels.

`conv.py` holds the k x k convolution, `rows.py` what needs no neighbours, `grn_mlp.py` the fused block tail.
"""

from sparse_ops.backends.scatter.conv import subm_conv2d
from sparse_ops.backends.scatter.grn_mlp import grn_mlp
from sparse_ops.backends.scatter.rows import downsample_conv2d, global_response_norm
from sparse_ops.dispatch import Call

__all__ = ["downsample_conv2d", "global_response_norm", "grn_mlp", "reasons", "subm_conv2d"]


def reasons(call: Call) -> list[str]:
    """Why this backend cannot run the call: never, PyTorch's kernels take every dtype and device."""
    return []
