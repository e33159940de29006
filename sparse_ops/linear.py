"""Linear layers over rows, by the fastest GEMM that PyTorch holds.

On a CPU in float32, PyTorch's linear layer calls MKL, which leaves AVX-512 unused on processors that are not
Intel's: 210 GFLOP/s on two cores of an AMD EPYC where oneDNN's 1x1 convolution, the same GEMM, gives 470
(torch 2.15, 9728 x 96 x 384). bfloat16 goes through oneDNN in both.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: [..., C_in] times [C_out, C_in] plus [C_out]; autocast and gradients included."""
    if not _by_convolution(x) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    out = F.conv2d(_plane(x.reshape(-1, x.shape[-1])), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def linear_dgrad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`grad @ weight`, the gradient of x [N, C_in]; x itself is not read."""
    if not _by_convolution(grad):
        return grad @ weight
    return _convolution_backward(grad, x, weight, need_x=True, need_weight=False)[0]


def linear_wgrad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`grad.t() @ x`, the gradient of the weight [C_out, C_in]; the weight itself is not read."""
    if not _by_convolution(grad):
        return grad.t() @ x
    return _convolution_backward(grad, x, weight, need_x=False, need_weight=True)[1]


def _by_convolution(x: Tensor) -> bool:
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype is torch.float32 and x.numel() > 0


def _plane(rows: Tensor) -> Tensor:
    """Rows [N, C] as an image of one line, [1, C, 1, N] with channels last."""
    return rows[None, None].permute(0, 3, 1, 2)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        _plane(grad),
        _plane(x),
        weight[:, :, None, None],
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [need_x, need_weight, False],
    )
    if need_x:
        grad_x = grad_x.permute(0, 2, 3, 1).reshape(x.shape)
    if need_weight:
        grad_weight = grad_weight.reshape(weight.shape)
    return grad_x, grad_weight
