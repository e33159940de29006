"""What may stand in GRN's place between a block's two linear layers: its variants, SE and CBAM.

Their statistics are those of the visible sites of each image; an image without any has zeros. They are
composed of plain PyTorch, for comparisons: only the paper's GRN has a fused path.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ops import Image, MaskedImage, SparseImage, SubmConv2d, features_of, with_features

_EPS = 1e-6
_REDUCTION = 16  # of SE and CBAM: hidden features of their channel MLP are a 16th


def image_sum(x: Image) -> Tensor:
    """Sum of the features over the sites that count, [B, C]."""
    if isinstance(x, Tensor):
        return x.sum(dim=(1, 2))
    if isinstance(x, MaskedImage):
        return (x.features * x.mask).sum(dim=(1, 2))
    rows, sites = x.features, x.sites
    if sites.rows_per_image is not None:
        return rows.view(sites.batch_size, sites.rows_per_image, rows.shape[1]).sum(dim=1)
    return rows.new_zeros(sites.batch_size, rows.shape[1]).index_add(0, sites.image_of_row, rows)


def image_mean(x: Image) -> Tensor:
    """Mean of the features over the sites that count, [B, C]."""
    if isinstance(x, Tensor):
        return x.mean(dim=(1, 2))
    return image_sum(x) / x.sites.row_offsets.diff().clamp(min=1).unsqueeze(1)


def image_max(x: Image) -> Tensor:
    """Largest feature over the sites that count, [B, C]."""
    if isinstance(x, Tensor):
        return x.amax(dim=(1, 2))
    if isinstance(x, MaskedImage):
        active = x.sites.active.unsqueeze(-1)
        largest = x.features.masked_fill(~active, -torch.inf).amax(dim=(1, 2))
        return largest.masked_fill(~active.any(dim=2).any(dim=1), 0.0)
    rows, sites = x.features, x.sites
    if sites.rows_per_image:
        return rows.view(sites.batch_size, sites.rows_per_image, rows.shape[1]).amax(dim=1)
    images = sites.image_of_row.unsqueeze(1).expand_as(rows)
    nothing = rows.new_zeros(sites.batch_size, rows.shape[1])
    return nothing.scatter_reduce(0, images, rows, "amax", include_self=False)


def at_sites(x: Image, values: Tensor) -> Tensor:
    """Values of each image, [B, C], for a product with the features of `x`: [N, C] or [B, 1, 1, C]."""
    if isinstance(x, SparseImage):
        return values.index_select(0, x.sites.image_of_row)
    return values[:, None, None]


def _l2(x: Image) -> Tensor:
    squares = image_sum(with_features(x, features_of(x).square()))
    # The square root has no slope at 0; an absent channel has norm 0 and gradient 0.
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _l1(x: Image) -> Tensor:
    return image_sum(with_features(x, features_of(x).abs()))


def _divisive(norms: Tensor) -> Tensor:
    # Means may be negative: their sum over the channels could be zero.
    return norms / (norms.abs().mean(dim=1, keepdim=True) + _EPS)


def _inverse(norms: Tensor) -> Tensor:
    return (1 / (norms.abs().mean(dim=1, keepdim=True) + _EPS)).expand_as(norms)


def _standardise(norms: Tensor) -> Tensor:
    return F.layer_norm(norms, norms.shape[1:], eps=_EPS)


def _as_it_is(norms: Tensor) -> Tensor:
    return norms


_GRN_VARIANTS: dict[str, tuple[Callable[[Image], Tensor], Callable[[Tensor], Tensor]]] = {
    "grn_l1": (_l1, _divisive),
    "grn_mean": (image_mean, _divisive),
    "grn_standardise": (_l2, _standardise),
    "grn_inverse": (_l2, _inverse),
    "grn_no_norm": (_l2, _as_it_is),
}
OWN_GATES = (*_GRN_VARIANTS, "se", "cbam")
"""Gates that timm's ConvNeXt lacks. Each is called so in a block's MLP, so weights tell which they have."""


class GrnVariant(nn.Module):
    """`x + gamma * x * N(G(x)) + beta`, with another aggregation G over sites or normalisation N of channels.

    The paper's GRN is the L2 norm over its mean. Here G is the L1 norm, the mean (global average pooling) or
    the L2 norm, and N divides by the mean of |G|, is that mean's inverse, makes mean 0 and variance 1, or
    nothing.

    Args:
        kind: "grn_l1", "grn_mean", "grn_standardise", "grn_inverse" or "grn_no_norm".
        channels: Of the features, C.
    Attributes:
        weight: gamma, [C], zero at the start, so that the layer begins as the identity.
        bias: beta, [C], zero at the start.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.3.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.aggregate, self.normalise = _GRN_VARIANTS[kind]
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Image) -> Image:
        """The features, gated; statistics in float32 at least."""
        features = features_of(x)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        response = self.normalise(self.aggregate(with_features(x, wide)))
        out = wide * at_sites(x, self.weight * response + 1) + self.bias
        return with_features(x, out.to(features.dtype))


class SqueezeExcite(nn.Module):
    """`x * sigmoid(W2 relu(W1 mean(x)))`, with C / 16 hidden features.

    Paper: Hu et al. 2018, Squeeze-and-Excitation Networks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _REDUCTION)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Image) -> Image:
        """The features, gated by channel."""
        features = features_of(x)
        scale = self.fc2(F.relu(self.fc1(image_mean(x)))).sigmoid()
        return with_features(x, features * at_sites(x, scale.to(features.dtype)))


class Cbam(nn.Module):
    """A gate of the channels, from their mean and maximum, and then one of the sites, from theirs.

    `sigmoid(W2 relu(W1 mean(x)) + W2 relu(W1 max(x)))` for the channels, with C / 16 hidden features and no
    biases; for the sites the sigmoid of a 7x7 convolution over the mean and the maximum of their channels, in
    which hidden sites are zero. Without the BatchNorm behind it of the authors' code, as the paper has it.

    Paper: Woo et al. 2018, CBAM: Convolutional Block Attention Module.
    """

    def __init__(self, channels: int, *, backend: str = "auto") -> None:
        super().__init__()
        hidden = max(1, channels // _REDUCTION)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)
        self.conv = SubmConv2d(2, 1, 7, backend=backend)

    def forward(self, x: Image) -> Image:
        """The features, gated by channel and by site."""
        features = features_of(x)
        pooled = [self.fc2(F.relu(self.fc1(pool(x)))) for pool in (image_mean, image_max)]
        features = features * at_sites(x, (pooled[0] + pooled[1]).sigmoid().to(features.dtype))
        maps = torch.stack([features.mean(dim=-1), features.amax(dim=-1)], dim=-1)
        places = features_of(self.conv(with_features(x, maps))).sigmoid()
        return with_features(x, features * places.to(features.dtype))


def create_gate(kind: str, channels: int, *, backend: str = "auto") -> nn.Module:
    """The gate of a name in OWN_GATES."""
    if kind == "se":
        return SqueezeExcite(channels)
    if kind == "cbam":
        return Cbam(channels, backend=backend)
    return GrnVariant(kind, channels)
