"""How different the channels of a layer are: cosine distance, dead and saturated channels, effective rank."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fcmae.evaluation.diversity.hooks import observed

DEAD = 0.01
"""A channel is dead in an image where it nowhere exceeds this share of the layer's root mean square."""
SATURATED = 0.05
"""A channel is saturated in an image where it is not dead, and its standard deviation over the sites is below
this share of its mean's absolute value: it says the same everywhere."""
MAPS = 64
"""Channels whose activation maps are kept, of the first image."""


@dataclass(frozen=True, kw_only=True)
class LayerDiversity:
    """One layer; all numbers but the first four are means over images."""

    module: str
    """The module that reads the features."""
    channels: int
    sites: int
    """Positions of an image, H * W."""
    images: int
    distance: float
    """See `cosine_distance`."""
    dead: float
    """Share of the channels, see DEAD."""
    saturated: float
    """Share of the channels, see SATURATED."""
    effective_rank: float
    """See `effective_rank`."""
    maps: Tensor
    """float32 [min(64, C), h, w] of the first image."""


def cosine_distance(features: Tensor) -> Tensor:
    """Mean cosine distance of the channels, `(1 / C^2) sum_ij (1 - cos(X_i, X_j)) / 2`; higher: more diverse.

    X_i is a channel's map as a vector of all sites. With u_i = X_i / |X_i| the sum of all cosines is
    `|sum_i u_i|^2`, so nothing of size C x C is made, and the distance is `1/2 - |sum_i u_i|^2 / (2 C^2)`. A
    channel that is 0 everywhere has no direction: it counts as one direction more, the same for all of them
    (cosine 1 with each other and itself, 0 with the rest), so a dead layer is a collapsed one.

    Bounds: 0 <= distance <= 1/2. By the triangle inequality `0 <= |sum_i u_i| <= C`. It is 0 where
    all u_i are equal (collapsed features, up to positive factors) and only there, and 1/2 where they cancel.
    Orthogonal channels have `|sum_i u_i|^2 = C`, hence `(C - 1) / (2 C)`: the diagonal's cosines are 1, so
    they miss 1/2 by 1 / (2 C). It is also the largest value of features that are nowhere negative,
    whose cosines are at least 0, and with them `|sum_i u_i|^2 >= C`.

    Args:
        features: [..., H * W, C], floating point.
    Returns:
        [...], dtype of `features`.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.2.
    """
    channels = features.shape[-1]
    norms = torch.linalg.vector_norm(features, dim=-2)
    dead = norms == 0
    directions = features / norms.masked_fill(dead, 1).unsqueeze(-2)
    of_dead = dead.to(features.dtype).sum(dim=-1).square()
    cosines = directions.sum(dim=-1).square().sum(dim=-1) + of_dead
    return (0.5 - cosines / (2 * channels**2)).clamp(min=0)


def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values' shares: 1 for one direction, at most min(H * W, C).

    The singular values come from the eigenvalues of the smaller of the two Gram matrices. 0 for features that
    are all 0.

    Args:
        features: [H * W, C], float64.
    Returns:
        A scalar.
    Paper: Roy and Vetterli 2007, The effective rank.
    """
    wide = features.shape[0] < features.shape[1]
    gram = features @ features.T if wide else features.T @ features
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    entropy = torch.special.entr(values / values.sum()).sum()
    return entropy.exp().nan_to_num(nan=0.0)  # 0 / 0 where all features are 0


def dead_and_saturated(features: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the channels that are dead and saturated in one image [H * W, C]; see DEAD and SATURATED."""
    dead = features.abs().amax(dim=0) <= DEAD * features.square().mean().sqrt()
    deviation, mean = features.std(dim=0, unbiased=False), features.mean(dim=0)
    saturated = ~dead & (deviation < SATURATED * mean.abs())
    return dead.to(features.dtype).mean(), saturated.to(features.dtype).mean()


@torch.no_grad()
def measure_diversity(
    model: nn.Module, batches: Iterable[Tensor], *, modules: str, prefix_tokens: int = 0
) -> list[LayerDiversity]:
    """Diversity of what each matching module of any network reads, over all images.

    Hooks take the features while the network runs and reduce each image to a few numbers at once: beside the
    network's own memory there is one image of one layer at a time, in float64, a few times `8 H W C` bytes,
    with `8 min(H W, C)^2` for its Gram matrix, and 64 maps a layer of the first image. The number of images
    changes nothing. ConvNeXt V2-Base at 224 pixels: 13 MB and 5 MB at most.

    Args:
        model: Takes images [B, C, H, W]; run in evaluation mode, which is put back.
        batches: Images, normalised, on the model's device.
        modules: Regular expression that whole names of modules match.
        prefix_tokens: Tokens before the patches in [B, tokens, C], which are no sites: a class token.
    Returns:
        One entry a module, in the order in which they ran.
    Raises:
        InputError: see `observed`.
    """
    sums: dict[str, _Sums] = {}

    def receive(name: str, features: Tensor) -> None:
        flat = features.flatten(1, -2)
        if name not in sums:
            sums[name] = _Sums(_maps(features[0]), flat.shape[1], flat.shape[2])
        for image in flat:
            sums[name].add(image)

    with observed(model, modules, receive, prefix_tokens=prefix_tokens):
        for images in batches:
            model(images)
    return [found.layer(name) for name, found in sums.items()]


class _Sums:
    """Running sums of a layer."""

    def __init__(self, maps: Tensor, sites: int, channels: int) -> None:
        self.maps, self.sites, self.channels = maps, sites, channels
        self.images = 0
        self.totals = torch.zeros(4, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """One image, [H * W, C]."""
        features = features.double()
        found = [cosine_distance(features), *dead_and_saturated(features), effective_rank(features)]
        self.totals += torch.stack(found).cpu()
        self.images += 1

    def layer(self, name: str) -> LayerDiversity:
        distance, dead, saturated, rank = (self.totals / self.images).tolist()
        return LayerDiversity(
            module=name,
            channels=self.channels,
            sites=self.sites,
            images=self.images,
            distance=distance,
            dead=dead,
            saturated=saturated,
            effective_rank=rank,
            maps=self.maps,
        )


def _maps(image: Tensor) -> Tensor:
    """The first channels of one image [H, W, C], or of tokens [L, C] of a square, as [channels, h, w]."""
    if image.ndim == 2:
        side = round(image.shape[0] ** 0.5)
        grid = (side, side) if side * side == image.shape[0] else (1, image.shape[0])
        image = image.unflatten(0, grid)
    return image[..., :MAPS].permute(2, 0, 1).float().cpu().clone()
