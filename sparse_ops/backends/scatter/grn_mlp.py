"""The tail of a ConvNeXt V2 block, `fc2(GRN(GELU(fc1(x))))`, without keeping what can be redone.

Only fc1's output is kept for the backward; GELU and GRN are redone there. Images go through in chunks that
stay in the cache, so the passes over the 4C-wide hidden features cost little beside the GEMMs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.checks import require_no_tangents
from sparse_ops.linear import linear, linear_dgrad, linear_wgrad
from sparse_ops.rows import global_response_norm
from sparse_ops.sites import ActiveSites

CHUNK_BYTES = 8 * 2**20
"""Hidden features of the images that are processed together."""


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
    rows = sites.rows_per_image
    if features.device.type != "cpu" or scope != "image" or not rows:
        hidden = F.gelu(linear(features, *fc1))
        return linear(global_response_norm(hidden, *grn, sites, eps, scope), *fc2)
    require_no_tangents("grn_mlp", features, *fc1, *grn, *fc2)
    image_bytes = rows * fc1[0].shape[0] * features.element_size()
    chunks = features.split(rows * max(1, CHUNK_BYTES // image_bytes))
    outs = [_grn_mlp(chunk, *fc1, *grn, *fc2, rows, eps)[0] for chunk in chunks]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _scale(norms: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """GRN's factor of each image and channel, [B, 1, D], in the norms' dtype."""
    response = norms / (norms.mean(dim=1, keepdim=True) + eps)
    return (gamma * response + 1).unsqueeze(1)


@torch.library.custom_op("sparse_ops::grn_mlp", mutates_args=())
def _grn_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    rows_per_image: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output [N, C_out], fc1's output [N, D] and GRN's norms [B, D] in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pre = linear(x, weight1, bias1)
    hidden = F.gelu(pre).view(-1, rows_per_image, pre.shape[1])
    norms = hidden.to(wide).square().sum(1).sqrt_()
    hidden.mul_(_scale(norms, gamma, eps).to(x.dtype))
    # GRN's shift is the same for every row, so it joins the bias.
    bias = torch.addmv(bias2, weight2, beta)
    return linear(hidden.view_as(pre), weight2, bias), pre, norms


@_grn_mlp.register_fake
def _(x, weight1, bias1, gamma, beta, weight2, bias2, rows_per_image, eps) -> tuple[Tensor, Tensor, Tensor]:
    pre = x.new_empty(x.shape[0], weight1.shape[0])
    wide = torch.promote_types(x.dtype, torch.float32)
    norms = x.new_empty(x.shape[0] // rows_per_image, weight1.shape[0], dtype=wide)
    return x.new_empty(x.shape[0], weight2.shape[0]), pre, norms


@torch.library.custom_op("sparse_ops::grn_mlp_backward", mutates_args=())
def _grn_mlp_backward(
    grad: Tensor,
    x: Tensor,
    pre: Tensor,
    norms: Tensor,
    weight1: Tensor,
    gamma: Tensor,
    weight2: Tensor,
    beta: Tensor,
    rows_per_image: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide, hidden_dim = norms.dtype, pre.shape[1]
    hidden = F.gelu(pre).view(-1, rows_per_image, hidden_dim)
    # Gradient of GRN's output, then of its factor, of the norms and of its input.
    grad_hidden = linear_dgrad(grad, pre, weight2).view_as(hidden)
    grad_scale = (grad_hidden * hidden).sum(1, dtype=wide)
    mean = norms.mean(dim=1, keepdim=True) + eps
    grad_gamma = (grad_scale * norms / mean).sum(0)
    grad_response = grad_scale * gamma
    grad_mean = (grad_response * norms).sum(1, keepdim=True) / (mean * mean * hidden_dim)
    grad_norm = grad_response / mean - grad_mean
    pull = torch.where(norms > 0, grad_norm / norms, 0).unsqueeze(1).to(x.dtype)
    scale = _scale(norms, gamma, eps).to(x.dtype)
    grad_hidden.mul_(scale).addcmul_(hidden, pull)
    grad_pre = torch.ops.aten.gelu_backward(grad_hidden.view_as(pre), pre)
    hidden.mul_(scale)
    grad_weight2 = linear_wgrad(grad, hidden.view_as(pre), weight2)
    # The shift W2 @ beta was added to the bias of fc2.
    grad_bias2 = grad.sum(0, dtype=wide)
    grad_weight2.addr_(grad_bias2.to(x.dtype), beta)
    return (
        linear_dgrad(grad_pre, x, weight1),
        linear_wgrad(grad_pre, x, weight1),
        grad_pre.sum(0),
        grad_gamma.to(gamma.dtype),
        (grad_bias2 @ weight2.to(wide)).to(beta.dtype),
        grad_weight2,
        grad_bias2.to(weight2.dtype),
    )


@_grn_mlp_backward.register_fake
def _(grad, x, pre, norms, weight1, gamma, weight2, beta, rows_per_image, eps):
    outputs = (x, weight1, weight1[:, 0], gamma, beta, weight2, weight2[:, 0])
    return tuple(like.new_empty(like.shape) for like in outputs)


def _setup(ctx, inputs, output) -> None:
    x, weight1, _, gamma, beta, weight2, _, rows_per_image, eps = inputs
    _, pre, norms = output
    ctx.save_for_backward(x, pre, norms, weight1, gamma, weight2, beta)
    ctx.mark_non_differentiable(pre, norms)
    # Or autograd would make zeros the size of `pre` for its gradient.
    ctx.set_materialize_grads(False)
    ctx.rows_per_image, ctx.eps = rows_per_image, eps


def _backward(ctx, grad: Tensor | None, _pre, _norms) -> tuple:
    if grad is None:
        return (None,) * 9
    gradients = _grn_mlp_backward(grad.contiguous(), *ctx.saved_tensors, ctx.rows_per_image, ctx.eps)
    return (*gradients, None, None)


_grn_mlp.register_autograd(_backward, setup_context=_setup)
