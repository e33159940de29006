"""Global response normalisation, and the tail of a ConvNeXt V2 block, `fc2(GRN(GELU(fc1(x))))`.

The GEMMs are PyTorch's. Between them, in passes over the features [N, D] of fc1's output (the bytes of one
read or write of them are the unit):

    forward   sums of gelu(pre)**2               reads pre                                      1
              hidden = gelu(pre) * scale         reads pre, writes hidden                       2
    backward  sums of grad * gelu(pre)           reads pre, grad                                2
              gradient of pre, hidden again      reads pre, grad, writes both (over grad)       4

GELU's output is never stored; the backward keeps x, pre and the norms. GRN's shift is the same for every row,
so it joins fc2's bias, and the gradient of fc1's bias is summed while the gradient of pre is in registers.
Alone, GRN is the same passes without GELU: 1 + 2 forward, 2 + 3 backward.
"""

import torch
from torch import Tensor

from sparse_ops.checks import require_no_tangents
from sparse_ops.linear import linear, linear_dgrad, linear_wgrad
from sparse_ops.sites import ActiveSites


def global_response_norm(
    features: Tensor, gamma: Tensor, beta: Tensor, sites: ActiveSites, eps: float, scope: str
) -> Tensor:
    """See `sparse_ops.functional.global_response_norm`; arguments are checked there."""
    require_no_tangents("global_response_norm", features, gamma, beta)
    return _grn(features, gamma, beta, _offsets(sites, scope), eps)[0]


def grn_mlp(
    features: Tensor,
    fc1: tuple[Tensor, Tensor],
    grn: tuple[Tensor, Tensor],
    fc2: tuple[Tensor, Tensor],
    sites: ActiveSites,
    eps: float,
    scope: str,
) -> Tensor:
    """See `sparse_ops.functional.grn_mlp`; arguments are checked there."""
    require_no_tangents("grn_mlp", features, *fc1, *grn, *fc2)
    return _grn_mlp(features, *fc1, *grn, *fc2, _offsets(sites, scope), eps)[0]


def _offsets(sites: ActiveSites, scope: str) -> Tensor:
    """First row of each group whose statistics are one, and N, int64 [G + 1]."""
    if scope == "image":
        return sites.row_offsets
    return torch.arange(2, device=sites.device) * sites.num_sites


@torch.library.custom_op("sparse_ops::triton_grn", mutates_args=())
def _grn(x: Tensor, gamma: Tensor, beta: Tensor, offsets: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the output [N, C] and the norms, float32 [G, C]."""
    # Here and below: Triton is imported by the first call, not with the package.
    from sparse_ops.backends.triton_gpu import grn_passes as passes

    x = x.contiguous()
    partials = passes.column_sums(x, None, offsets, gelu=False)
    norms, scale = passes.scales(partials, gamma.contiguous(), eps)
    return passes.apply(x, scale, beta.contiguous(), offsets, gelu=False), norms


@_grn.register_fake
def _(x: Tensor, gamma: Tensor, beta: Tensor, offsets: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _empty_norms(x, offsets, gamma)


def _empty_norms(x: Tensor, offsets: Tensor, gamma: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, gamma.shape[0], dtype=torch.float32)


@torch.library.custom_op("sparse_ops::triton_grn_backward", mutates_args=())
def _grn_backward(
    grad: Tensor, x: Tensor, norms: Tensor, gamma: Tensor, beta: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from sparse_ops.backends.triton_gpu import grn_passes as passes

    grad, x, gamma = grad.contiguous(), x.contiguous(), gamma.contiguous()
    partials = passes.column_sums(x, grad, offsets, gelu=False)
    scale, pull, grad_gamma = passes.scales_backward(partials, norms, gamma, eps)
    grad_x, grad_beta = passes.apply_backward(x, grad, scale, pull, offsets)
    return grad_x, grad_gamma.sum(0).to(gamma.dtype), grad_beta.to(beta.dtype)


@_grn_backward.register_fake
def _(grad, x, norms, gamma, beta, offsets, eps) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gamma.new_empty(gamma.shape), beta.new_empty(beta.shape)


def _setup_grn(ctx, inputs, output) -> None:
    x, gamma, beta, offsets, ctx.eps = inputs
    ctx.save_for_backward(x, output[1], gamma, beta, offsets)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward_grn(ctx, grad: Tensor | None, _norms) -> tuple:
    if grad is None:
        return (None,) * 5
    return (*_grn_backward(grad, *ctx.saved_tensors, ctx.eps), None, None)


_grn.register_autograd(_backward_grn, setup_context=_setup_grn)


@torch.library.custom_op("sparse_ops::triton_grn_mlp", mutates_args=())
def _grn_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    offsets: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output [N, C_out], fc1's output [N, D] and the norms, float32 [G, D]."""
    from sparse_ops.backends.triton_gpu import grn_passes as passes

    pre = linear(x, weight1, bias1)
    partials = passes.column_sums(pre, None, offsets, gelu=True)
    norms, scale = passes.scales(partials, gamma.contiguous(), eps)
    hidden = passes.apply(pre, scale, None, offsets, gelu=True)
    return linear(hidden, weight2, torch.addmv(bias2, weight2, beta)), pre, norms


@_grn_mlp.register_fake
def _(x, weight1, bias1, gamma, beta, weight2, bias2, offsets, eps) -> tuple[Tensor, Tensor, Tensor]:
    pre = x.new_empty(x.shape[0], weight1.shape[0])
    return x.new_empty(x.shape[0], weight2.shape[0]), pre, _empty_norms(x, offsets, gamma)


@torch.library.custom_op("sparse_ops::triton_grn_mlp_backward", mutates_args=())
def _grn_mlp_backward(
    grad: Tensor,
    x: Tensor,
    pre: Tensor,
    norms: Tensor,
    weight1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    offsets: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from sparse_ops.backends.triton_gpu import grn_passes as passes

    grad = grad.contiguous()
    grad_hidden = linear_dgrad(grad, pre, weight2).contiguous()
    partials = passes.column_sums(pre, grad_hidden, offsets, gelu=True)
    scale, pull, grad_gamma = passes.scales_backward(partials, norms, gamma.contiguous(), eps)
    hidden = torch.empty_like(pre)
    grad_pre, grad_bias1 = passes.apply_backward(pre, grad_hidden, scale, pull, offsets, hidden=hidden)
    # The shift W2 @ beta was added to the bias of fc2.
    grad_bias2 = grad.sum(0, dtype=torch.float32)
    grad_weight2 = linear_wgrad(grad, hidden, weight2).addr_(grad_bias2.to(beta.dtype), beta)
    return (
        linear_dgrad(grad_pre, x, weight1),
        linear_wgrad(grad_pre, x, weight1),
        grad_bias1.to(weight1.dtype),
        grad_gamma.sum(0).to(gamma.dtype),
        (grad_bias2 @ weight2.float()).to(beta.dtype),
        grad_weight2,
        grad_bias2.to(weight2.dtype),
    )


@_grn_mlp_backward.register_fake
def _(grad, x, pre, norms, weight1, gamma, beta, weight2, offsets, eps):
    outputs = (x, weight1, weight1[:, 0], gamma, beta, weight2, weight2[:, 0])
    return tuple(like.new_empty(like.shape) for like in outputs)


def _setup_mlp(ctx, inputs, output) -> None:
    x, weight1, _, gamma, beta, weight2, _, offsets, ctx.eps = inputs
    _, pre, norms = output
    ctx.save_for_backward(x, pre, norms, weight1, gamma, beta, weight2, offsets)
    ctx.mark_non_differentiable(pre, norms)
    # Or autograd would make zeros the size of `pre` for its gradient.
    ctx.set_materialize_grads(False)


def _backward_mlp(ctx, grad: Tensor | None, _pre, _norms) -> tuple:
    if grad is None:
        return (None,) * 9
    saved = ctx.saved_tensors
    # The forward pass chose the dtype; autocast around backward() must not choose another.
    with torch.autocast(grad.device.type, enabled=False):
        return (*_grn_mlp_backward(grad, *saved, ctx.eps), None, None)


_grn_mlp.register_autograd(_backward_mlp, setup_context=_setup_mlp)
