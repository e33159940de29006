"""The tail of a ConvNeXt V2 block, `fc2(GRN(GELU(fc1(x))))`, without keeping what can be redone.

Only fc1's output is kept for the backward; GELU and GRN are redone there. Images go through in chunks that
stay in the cache, so the passes over the 4C-wide hidden features cost little beside the GEMMs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.backends.scatter.rows import global_response_norm
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
    fusable = features.device.type == "cpu" and scope == "image" and bool(sites.rows_per_image)
    if fusable:
        rows = sites.rows_per_image
        assert rows is not None
        return _grn_mlp(features, *fc1, *grn, *fc2, rows, eps)[0]
    hidden = F.gelu(F.linear(features, *fc1))
    return F.linear(global_response_norm(hidden, *grn, sites, eps, scope), *fc2)


def _chunks(pre: Tensor, rows_per_image: int) -> range:
    """First rows of the chunks; the step is their size."""
    image_bytes = rows_per_image * pre.shape[1] * pre.element_size()
    images = max(1, CHUNK_BYTES // max(1, image_bytes))
    return range(0, pre.shape[0], images * rows_per_image)


def _scale(norms: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """GRN's factor of each image and channel, [b, 1, 4C], in the norms' dtype."""
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
    """Returns the output [N, C_out], fc1's output [N, 4C] and GRN's norms [B, 4C]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden_dim = weight1.shape[0]
    pre = x.new_empty(x.shape[0], hidden_dim)
    norms = torch.empty(x.shape[0] // rows_per_image, hidden_dim, dtype=wide)
    out = x.new_empty(x.shape[0], weight2.shape[0])
    # GRN's shift is the same for every row, so it joins the bias.
    bias = torch.addmv(bias2, weight2, beta)
    chunks = _chunks(pre, rows_per_image)
    for first in chunks:
        rows = slice(first, first + chunks.step)
        images = slice(first // rows_per_image, (first + chunks.step) // rows_per_image)
        torch.addmm(bias1, x[rows], weight1.t(), out=pre[rows])
        hidden = F.gelu(pre[rows]).view(-1, rows_per_image, hidden_dim)
        norms[images] = hidden.to(wide).square().sum(1).sqrt_()
        hidden.mul_(_scale(norms[images], gamma, eps).to(x.dtype))
        torch.addmm(bias, hidden.view(-1, hidden_dim), weight2.t(), out=out[rows])
    return out, pre, norms


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
    grad_x = torch.empty_like(x)
    grad_weight1 = torch.zeros(weight1.shape, dtype=wide)
    grad_weight2 = torch.zeros(weight2.shape, dtype=wide)
    grad_bias1 = torch.zeros(hidden_dim, dtype=wide)
    grad_gamma = torch.zeros(hidden_dim, dtype=wide)
    grad_bias2 = grad.sum(0, dtype=wide)
    chunks = _chunks(pre, rows_per_image)
    for first in chunks:
        rows = slice(first, first + chunks.step)
        norm = norms[first // rows_per_image : (first + chunks.step) // rows_per_image]
        hidden = F.gelu(pre[rows]).view(-1, rows_per_image, hidden_dim)
        # Gradient of GRN's output, then of its factor, of the norms and of its input.
        grad_hidden = (grad[rows] @ weight2).view_as(hidden)
        grad_scale = (grad_hidden * hidden).sum(1, dtype=wide)
        mean = norm.mean(dim=1, keepdim=True) + eps
        grad_gamma += (grad_scale * norm / mean).sum(0)
        grad_response = grad_scale * gamma
        grad_mean = (grad_response * norm).sum(1, keepdim=True) / (mean * mean * hidden_dim)
        grad_norm = grad_response / mean - grad_mean
        pull = torch.where(norm > 0, grad_norm / norm, 0).unsqueeze(1).to(x.dtype)
        scale = _scale(norm, gamma, eps).to(x.dtype)
        grad_hidden.mul_(scale).addcmul_(hidden, pull)
        grad_pre = torch.ops.aten.gelu_backward(grad_hidden.view(-1, hidden_dim), pre[rows])
        hidden.mul_(scale)
        grad_weight2 += grad[rows].t() @ hidden.view(-1, hidden_dim)
        grad_weight1 += grad_pre.t() @ x[rows]
        grad_bias1 += grad_pre.sum(0, dtype=wide)
        torch.mm(grad_pre, weight1, out=grad_x[rows])
    # The shift W2 @ beta was added to the bias of fc2.
    grad_beta = grad_bias2 @ weight2.to(wide)
    grad_weight2.addr_(grad_bias2, beta.to(wide))
    return (
        grad_x,
        grad_weight1.to(weight1.dtype),
        grad_bias1.to(weight1.dtype),
        grad_gamma.to(gamma.dtype),
        grad_beta.to(beta.dtype),
        grad_weight2.to(weight2.dtype),
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
    ctx.rows_per_image, ctx.eps = rows_per_image, eps


def _backward(ctx, grad: Tensor, _pre, _norms) -> tuple:
    gradients = _grn_mlp_backward(grad.contiguous(), *ctx.saved_tensors, ctx.rows_per_image, ctx.eps)
    return (*gradients, None, None)


_grn_mlp.register_autograd(_backward, setup_context=_setup)
