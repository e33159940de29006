"""Mask R-CNN of torchvision's parts on one of our feature pyramids."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fcmae.config import DetectorConfig
from fcmae.downstream.detection.data.dataset import Target
from fcmae.downstream.network import PyramidNetwork
from fcmae.downstream.pyramid import FeaturePyramid

_COARSEST = 64
"""Stride of the FPN's last level: torchvision's anchors are in place where it divides the sides."""


class Detector(PyramidNetwork):
    """Mask R-CNN: the pyramid, an FPN, torchvision's region proposals and its box and mask heads.

    Args:
        pyramid: Maps at strides 4 to 32.
        config: The new parts.
        classes: Classes, the background not counted.
    Paper: He et al. 2017, Mask R-CNN; Lin et al. 2017, FPN.
    """

    def __init__(self, pyramid: FeaturePyramid, config: DetectorConfig, *, classes: int) -> None:
        super().__init__(pyramid)
        width, norm = config.fpn_dim, LayerNorm2d if config.norm == "layer" else None
        pool = partial(MultiScaleRoIAlign, list(pyramid.channels), sampling_ratio=2)
        anchors = AnchorGenerator(
            tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * len(config.anchor_sizes)
        )
        self.fpn = FeaturePyramidNetwork(
            list(pyramid.channels.values()), width, extra_blocks=LastLevelMaxPool(), norm_layer=norm
        )
        cast(Any, self.fpn).out_channels = width  # MaskRCNN asks its backbone
        if config.box_head == "2fc":
            box_head: nn.Module = TwoMLPHead(width * 7 * 7, config.head_dim)
        else:
            box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [config.head_dim], norm_layer=norm)
        parts = MaskRCNN(
            self.fpn,
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=config.rpn_convs),
            rpn_post_nms_top_n_train=1000,  # as the papers' code; torchvision's own is 2000
            box_batch_size_per_image=config.box_samples,
            box_roi_pool=pool(output_size=7),
            box_head=box_head,
            box_predictor=FastRCNNPredictor(config.head_dim, classes + 1),
            mask_roi_pool=pool(output_size=14),
            mask_head=MaskRCNNHeads(width, (width,) * 4, 1, norm_layer=norm),
            mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
        )
        self.rpn, self.roi_heads = parts.rpn, parts.roi_heads

    def features(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The FPN's maps by their strides, and "pool" of stride 64.

        Args:
            images: [B, C, H, W].
            sizes: (h, w) of each image, which stands in the top left corner; the rest is padding.
        """
        height, width = (-side % _COARSEST for side in images.shape[2:])
        return self.fpn(self.pyramid(F.pad(images, (0, width, 0, height)), sizes))

    def propose(
        self,
        features: dict[str, Tensor],
        sizes: Sequence[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Boxes [R, 4] of each image that may hold an instance, best first, and in training the losses."""
        finest = next(iter(features.values()))
        height, width = self.canvas(features)
        # Of the images, torchvision's anchors take shape, type and device only.
        canvas = finest.new_empty(1).expand(len(sizes), 1, height, width)
        return self.rpn(ImageList(canvas, list(sizes)), features, targets)

    @staticmethod
    def canvas(features: dict[str, Tensor]) -> tuple[int, int]:
        """(H, W) in pixels of the padded images that the maps are of."""
        stride, finest = next(iter(features.items()))
        return int(stride) * finest.shape[2], int(stride) * finest.shape[3]

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN by torchvision's names, whose sum is minimised.

        Args:
            images: [B, C, H, W], normalised.
            sizes: As in `features`.
            targets: What is to be found in each image.
        """
        wanted: list[dict[str, Any]] = [
            {"boxes": target.boxes, "labels": target.labels, "masks": target.masks} for target in targets
        ]
        features = self.features(images, sizes)
        proposals, losses = self.propose(features, sizes, wanted)
        # The pooling takes the maps' strides from these sizes, so they are the padded ones.
        _, more = self.roi_heads(features, proposals, [self.canvas(features)] * len(sizes), wanted)
        return losses | more
