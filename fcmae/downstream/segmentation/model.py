"""UPerNet, transformers' own, on our pyramids."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from fcmae.downstream.network import PyramidNetwork
from fcmae.downstream.pyramid import FeaturePyramid
from fcmae.downstream.segmentation.dataset import IGNORED


class Segmenter(PyramidNetwork):
    """UPerNet, with an auxiliary FCN head on stride 16 while it trains.

    Args:
        pyramid: The encoder's maps.
        num_classes: Outputs for each pixel.
        head_dim: Width of UPerNet.
        auxiliary_dim: Width of the auxiliary head; 0: none.
    Paper: Xiao et al. 2018, Unified Perceptual Parsing for Scene Understanding.
    """

    def __init__(
        self, pyramid: FeaturePyramid, *, num_classes: int, head_dim: int, auxiliary_dim: int
    ) -> None:
        super().__init__(pyramid)
        widths = list(pyramid.channels.values())
        config = UperNetConfig(
            hidden_size=head_dim,
            num_labels=num_classes,  # pyright: ignore[reportCallIssue]
            auxiliary_channels=max(1, auxiliary_dim),
            auxiliary_in_channels=widths[2],
        )
        self.head = UperNetHead(config, widths)
        self.auxiliary = UperNetFCNHead(config, widths) if auxiliary_dim else None

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the classes, and in training those of the auxiliary head.

        Args:
            images: [B, C, H, W].
            sizes: (h, w) of each image without its padding, see `FeaturePyramid`.
        Returns:
            [B, num_classes, H, W] each.
        """
        maps = list(self.pyramid(images, sizes).values())
        size = (images.shape[2], images.shape[3])
        auxiliary = None
        if self.training and self.auxiliary is not None:
            auxiliary = _enlarged(self.auxiliary(maps), 16, size)
        return _enlarged(self.head(maps), 4, size), auxiliary


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy over all pixels, those without a class counted as 0.

    So a crop that is hardly annotated weighs less, and one that is not at all is no division by 0
    (mmsegmentation's default, with which the papers' numbers were made).

    Args:
        logits: [B, K, H, W].
        labels: [B, H, W], classes or IGNORED.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / labels.numel()


def _enlarged(logits: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Logits of padded images at a stride, as those of every pixel of the images."""
    enlarged = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    return enlarged[..., : size[0], : size[1]]
