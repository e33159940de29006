"""The public operations: check the arguments, choose a backend, call it.

Every op takes a SparseImage, a MaskedImage (its dense emulation) or a plain dense tensor [B, H, W, C].
"""

from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.backends import (
    minkowski_adapter,
    reference,
    scatter,
    spconv_adapter,
    triton_gpu,
    warpconvnet_adapter,
)
from sparse_ops.checks import require, require_float, require_like
from sparse_ops.dispatch import Backend, Call, select
from sparse_ops.image import Image, MaskedImage, SparseImage, features_of, with_features
from sparse_ops.linear import linear

Scope = Literal["image", "batch"]

MLP_PARAMETERS = ("fc1's weight", "fc1's bias", "gamma", "beta", "fc2's weight", "fc2's bias")

# In the order that "auto" tries them. The reference runs everything: what follows it has to be named.
_ENGINES = {
    Backend.TRITON: triton_gpu,
    Backend.SCATTER: scatter,
    Backend.REFERENCE: reference,
    Backend.SPCONV: spconv_adapter,
    Backend.MINKOWSKI: minkowski_adapter,
    Backend.WARPCONVNET: warpconvnet_adapter,
}

# Asked once: torch 2.11's compiler cannot trace the question.
_AUTOCAST_DEVICES = tuple(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def engine(backend: str) -> ModuleType:
    """The module of a backend, for tests that watch it."""
    return _ENGINES[Backend(backend)]


def _autocast(features: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The tensors in autocast's dtype where it is on, as F.conv2d and F.linear would have them."""
    device = features.device.type
    tensors = [features, *parameters]
    if device not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return tensors
    if features.dtype is torch.float64:  # which autocast leaves alone
        return tensors
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


def _autocast_kernel(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if bias is None:
        features, weight = _autocast(features, weight)
    else:
        features, weight, bias = _autocast(features, weight, bias)
    return features, weight, bias


def _check_kernel(op: str, features: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    channels = features.shape[-1]
    require_float(op, "features", features)
    require(
        weight.ndim == 4 and weight.shape[2] == weight.shape[3],
        op,
        "weight",
        "[C_out, C_in, k, k]",
        list(weight.shape),
    )
    require(groups in (1, channels), op, "groups", f"1 or {channels} (the channels)", groups)
    # These messages are made only when they are needed: groups may be a symbol under torch.compile.
    if weight.shape[1] != channels // groups:
        require(False, op, "weight.shape[1]", f"{channels // groups}", weight.shape[1])
    if weight.shape[0] % groups != 0:
        require(False, op, "weight.shape[0]", f"a multiple of groups ({groups})", weight.shape[0])
    require_like(op, "weight", weight, "features", features)
    if bias is not None:
        require(bias.shape == weight.shape[:1], op, "bias", f"[{weight.shape[0]}]", list(bias.shape))
        require_like(op, "bias", bias, "features", features)


def subm_conv2d(
    x: Image, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1, backend: str = "auto"
) -> Image:
    """Submanifold convolution: outputs only at the input's active sites.

    With m the active mask, `conv2d(m * x, weight, bias, padding=k // 2)` read at the active sites. A plain
    dense tensor is convolved as it is.

    Args:
        x: SparseImage with features [N, C_in], MaskedImage or tensor [B, H, W, C_in]; float16, bfloat16,
            float32 or float64.
        weight: [C_out, C_in // groups, k, k], same dtype; k odd.
        bias: [C_out], same dtype.
        groups: 1 or C_in; for C_in (depthwise) C_out = C_in.
        backend: "auto" or a `Backend`'s name.
    Returns:
        The representation of `x` with C_out channels, same dtype; accumulation in float32 at least.
    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: no backend, or the named one, can run this call.
    Paper: Graham and van der Maaten 2017, Submanifold Sparse Convolutional Networks.
    """
    op = "subm_conv2d"
    features, weight, bias = _autocast_kernel(features_of(x), weight, bias)
    _check_kernel(op, features, weight, bias, groups)
    kernel = weight.shape[-1]
    require(kernel % 2 == 1, op, "the kernel's side", "odd", kernel)
    if groups != 1 and weight.shape[0] != groups:
        require(False, op, "weight.shape[0]", f"{groups} (depthwise)", weight.shape[0])
    if isinstance(x, SparseImage):
        module = select(Call(op, features, weight, groups, backend), _ENGINES)
        return x.with_features(module.subm_conv2d(features, weight, bias, x.sites, groups))
    if isinstance(x, MaskedImage):
        features = features * x.mask.to(features.dtype)
    if groups != 1:
        # The same tensor; its gradient gets the strides that DDP's buckets have, where aten's are others.
        weight = weight.squeeze(1).unsqueeze(1)
    dense = F.conv2d(features.permute(0, 3, 1, 2), weight, bias, padding=kernel // 2, groups=groups)
    return with_features(x, dense.permute(0, 2, 3, 1))


def downsample_conv2d(
    x: Image, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Image:
    """Convolution whose stride is its kernel: no output mixes two patches.

    The dense one read at the coarser active sites; a coarse site is active when any child is, and inactive
    children are zeros.

    Args:
        x: SparseImage with features [N, C_in], MaskedImage or tensor [B, H, W, C_in].
        weight: [C_out, C_in, s, s], same dtype; s divides H and W.
        bias: [C_out], same dtype.
        backend: "auto" or a `Backend`'s name.
    Returns:
        The representation of `x`, s times coarser, with C_out channels.
    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: no backend, or the named one, can run this call.
    """
    op = "downsample_conv2d"
    features, weight, bias = _autocast_kernel(features_of(x), weight, bias)
    _check_kernel(op, features, weight, bias, 1)
    factor = weight.shape[-1]
    if isinstance(x, SparseImage):
        coarser = x.sites.downsample(factor)
        module = select(Call(op, features, weight, backend=backend), _ENGINES)
        return SparseImage(module.downsample_conv2d(features, weight, bias, x.sites), coarser)
    height, width = features.shape[1:3]
    divides = height % factor == 0 and width % factor == 0
    require(divides, op, "height and width", f"divisible by {factor}", f"{height} x {width}")
    if isinstance(x, MaskedImage) and not x.sites.is_view_of_children(factor):
        features = features * x.mask.to(features.dtype)
    dense = F.conv2d(features.permute(0, 3, 1, 2), weight, bias, stride=factor).permute(0, 2, 3, 1)
    return MaskedImage(dense, x.sites.downsample(factor)) if isinstance(x, MaskedImage) else dense


def _check_grn(op: str, channels: int, gamma: Tensor, beta: Tensor, scope: str) -> None:
    require(gamma.shape == (channels,), op, "gamma", f"[{channels}]", list(gamma.shape))
    require(beta.shape == (channels,), op, "beta", f"[{channels}]", list(beta.shape))
    require(scope in ("image", "batch"), op, "scope", "'image' or 'batch'", repr(scope))


def global_response_norm(
    x: Image, gamma: Tensor, beta: Tensor, *, eps: float = 1e-6, scope: Scope = "image", backend: str = "auto"
) -> Image:
    """Global response normalisation: channels compete by their norm over the image.

    `x + gamma * x * G / (mean_c(G) + eps) + beta` with G_c the L2 norm of channel c over the active sites of
    each image. The original sparse code takes the norm over the whole batch: `scope="batch"`.

    Args:
        x: SparseImage with features [N, C], MaskedImage or tensor [B, H, W, C].
        gamma: [C], the paper's zero-initialised scale; any floating-point dtype.
        beta: [C], the shift.
        eps: Added to the mean norm.
        scope: "image" or "batch" statistics.
        backend: "auto" or a `Backend`'s name.
    Returns:
        The representation and dtype of `x`; statistics in float32 at least.
    Raises:
        ValueError: shapes disagree.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.2.
    """
    op = "global_response_norm"
    features = features_of(x)
    require_float(op, "features", features)
    _check_grn(op, features.shape[-1], gamma, beta, scope)
    if isinstance(x, SparseImage):
        module = select(Call(op, features, backend=backend), _ENGINES)
        return x.with_features(module.global_response_norm(features, gamma, beta, x.sites, eps, scope))
    counted = features * x.mask if isinstance(x, MaskedImage) else features
    dims = (1, 2) if scope == "image" else (0, 1, 2)
    wide = torch.promote_types(features.dtype, torch.float32)
    norms = torch.linalg.vector_norm(counted, dim=dims, keepdim=True, dtype=wide)
    scale = gamma * (norms / (norms.mean(dim=-1, keepdim=True) + eps)) + 1
    out = torch.addcmul(beta.to(features.dtype), features, scale.to(features.dtype))
    return with_features(x, out)


def grn_mlp(
    x: Image,
    fc1: tuple[Tensor, Tensor],
    grn: tuple[Tensor, Tensor],
    fc2: tuple[Tensor, Tensor],
    *,
    eps: float = 1e-6,
    scope: Scope = "image",
    backend: str = "auto",
) -> Image:
    """The tail of a ConvNeXt V2 block, `fc2(GRN(GELU(fc1(x))))`, as one operation.

    Exactly that composition; an engine may keep less for the backward and fuse the passes.

    Args:
        x: SparseImage with features [N, C_in], MaskedImage or tensor [B, H, W, C_in].
        fc1: Weight [D, C_in] and bias [D].
        grn: gamma [D] and beta [D].
        fc2: Weight [C_out, D] and bias [C_out].
        eps: Added to the mean norm.
        scope: "image" or "batch" statistics of GRN.
        backend: "auto" or a `Backend`'s name.
    Returns:
        The representation of `x` with C_out channels.
    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: no backend, or the named one, can run this call.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.2.
    """
    op = "grn_mlp"
    features = features_of(x)
    _check_grn(op, fc1[0].shape[0], *grn, scope)
    shapes_agree = fc1[0].shape[1] == features.shape[-1] and fc2[0].shape[1] == fc1[0].shape[0]
    require(
        shapes_agree,
        op,
        "fc1 [D, C_in] and fc2 [C_out, D]",
        f"with C_in {features.shape[-1]}",
        [list(w.shape) for w, _ in (fc1, fc2)],
    )
    if isinstance(x, SparseImage):
        features, *parameters = _autocast(features, *fc1, *grn, *fc2)
        for name, parameter in zip(MLP_PARAMETERS, parameters, strict=True):
            require_like(op, name, parameter, "features", features)
        module = select(Call(op, features, backend=backend), _ENGINES)
        pairs = zip(parameters[::2], parameters[1::2], strict=True)
        return x.with_features(module.grn_mlp(features, *pairs, x.sites, eps, scope))
    hidden = with_features(x, F.gelu(linear(features, *fc1)))
    hidden = global_response_norm(hidden, *grn, eps=eps, scope=scope)
    return with_features(x, linear(features_of(hidden), *fc2))
