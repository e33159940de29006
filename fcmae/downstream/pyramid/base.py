"""What every pyramid is: an encoder, and maps of four strides from it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.errors import InputError
from fcmae.models import Encoder
from fcmae.training.engine.optim import LayerDecayType, layer_scale
from sparse_ops import ActiveSites

STRIDES = (4, 8, 16, 32)
"""Pixels per site of the maps."""


class FeaturePyramid(nn.Module):
    """Feature maps at strides 4, 8, 16 and 32 of images of any height and width.

    Padding is no part of an image: convolutions see 0 there, GRN's statistics and attention leave it out, and
    the maps are 0 in it. So an image gives the same maps alone and in a batch with larger ones.

    Args:
        encoder: Its weights loaded.
        channels: Width of the four maps.
        description: What `create_pyramid` needs to build this again without weights.
    """

    def __init__(
        self, encoder: Encoder, channels: tuple[int, int, int, int], *, description: dict[str, Any]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_chans = encoder.in_chans
        self.depths = encoder.depths
        self.channels = {str(stride): width for stride, width in zip(STRIDES, channels, strict=True)}
        self.description = description

    def maps(
        self, images: Tensor, sites: ActiveSites | None, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The four maps, [B, h, w, C] each; what they hold in the padding does not matter.

        Args:
            images: [B, in_chans, H, W], sides divisible by 32.
            sites: Sites of stride 4 that are not padding alone; None: all.
            sizes: Pixels of each image without its padding, (h, w).
        """
        raise NotImplementedError

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> dict[str, Tensor]:
        """The maps by their strides, "4", "8", "16" and "32".

        Args:
            images: [B, in_chans, H, W].
            sizes: (h, w) of each image, which stands in the top left corner; the rest is padding, whatever it
                holds. None: all is image.
        Returns:
            [B, channels, H' / stride, W' / stride], with H' and W' the next multiples of 32.
        Raises:
            InputError: another number of channels, or sizes that do not fit.
        """
        sizes = self._sizes(images, sizes)
        height, width = (-side % STRIDES[-1] for side in images.shape[2:])
        images = F.pad(images, (0, width, 0, height))
        sites = None
        if any(size != tuple(images.shape[2:]) for size in sizes):
            real = _real(images, sizes)
            images = images * real.unsqueeze(1).to(images.dtype)
            sites = ActiveSites.from_mask(F.max_pool2d(real.float(), STRIDES[0]).bool())
        found: dict[str, Tensor] = {}
        for stride, features in zip(STRIDES, self.maps(images, sites, sizes), strict=True):
            if sites is not None:
                active = sites if stride == STRIDES[0] else sites.downsample(stride // STRIDES[0])
                features = features.masked_fill(~active.active.unsqueeze(-1), 0.0)
            found[str(stride)] = features.permute(0, 3, 1, 2)
        return found

    def layer_scale(self, decay: float, *, kind: LayerDecayType = "single") -> Callable[[str], float]:
        """The factor on the learning rate by a parameter's name in this module, as in fine-tuning.

        What the encoder lacks (norms, convolutions of the pyramid) has the head's, 1.

        Args:
            decay: Factor for each layer below the head.
            kind: How parameters make layers, see `fcmae.training.engine.optim.layer_id`.
        """
        scale = layer_scale(decay, depths=self.depths, kind=kind)

        def scale_of(name: str) -> float:
            own = self.name_in_encoder(name)
            return 1.0 if own is None else scale(own)

        return scale_of

    def name_in_encoder(self, name: str) -> str | None:
        """The parameter of the encoder that is in the layer of this parameter; None: it is in no layer."""
        part, _, rest = name.partition(".")
        return rest if part == "encoder" else None

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay spares whatever their shape."""
        return set()

    def _sizes(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise InputError(f"images: expected [B, {self.in_chans}, H, W], got {list(images.shape)}.")
        batch, height, width = images.shape[0], images.shape[2], images.shape[3]
        if sizes is None:
            return [(height, width)] * batch
        given = [(int(size[0]), int(size[1])) for size in sizes]
        if len(given) != batch or not all(0 < h <= height and 0 < w <= width for h, w in given):
            raise InputError(
                f"sizes: expected {batch} of at most {height} x {width} pixels, got {given}. "
                "Give the height and width of each image without its padding."
            )
        return given


def _real(images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Pixels that are not padding, bool [B, H, W]."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    ends = torch.tensor(sizes, device=images.device)
    return (rows < ends[:, :1]).unsqueeze(2) & (columns < ends[:, 1:]).unsqueeze(1)
