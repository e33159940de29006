"""ConvNeXt V2 as a dense classifier, with the gates that timm's ConvNeXt lacks."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from fcmae.models.convnextv2 import ConvNeXtV2Encoder


class ConvNeXtClassifier(ConvNeXtV2Encoder):
    """The encoder on whole images, the mean over the sites, LayerNorm and a linear head.

    Names and computation are those of timm's `convnextv2_*` but for the gates of the blocks; the head begins
    as timm's.

    Args:
        depths, dims: As for `ConvNeXtV2Encoder`.
        num_classes: Outputs of the head; 0: its norm is the last layer.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        head_init_scale: Factor on the head's initial weights.
        **options: Of `ConvNeXtV2Encoder`.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        *,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(depths, dims, drop_path=drop_path_rate, **options)
        self.num_classes = num_classes
        fc = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        if isinstance(fc, nn.Linear):
            nn.init.trunc_normal_(fc.weight, std=0.02 * head_init_scale)
            nn.init.zeros_(fc.bias)
        self.head = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dims[-1], eps=1e-6), fc=fc))

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.head(self.forward_features(images).mean(dim=(2, 3)))

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of the last stage, [B, C, h, w]."""
        return self.stage_features(images)[-1].permute(0, 3, 1, 2)

    def stage_features(self, images: Tensor) -> list[Tensor]:
        """Features of every stage, [B, h, w, C]."""
        stages = super().forward(images)
        return [stage for stage in stages if isinstance(stage, Tensor)]
