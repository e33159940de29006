"""The detector is torchvision's Mask R-CNN, and padding, mirroring and sizes do what they say."""

import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
from detectors import ENCODERS, SMALL, small_detector
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fcmae.config import DetectorConfig, DetectTestConfig
from fcmae.downstream.detection.data.dataset import Target
from fcmae.downstream.detection.detect import Detections, detect
from fcmae.downstream.detection.model import Detector

ONCE = DetectTestConfig(short_sides=(64,), long_side=256, score_threshold=0.0, detections=20)


class Backbone(nn.Module):
    """The detector's maps, as torchvision asks for them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict(self.detector.features(images, [(images.shape[2], images.shape[3])] * len(images)))


def torchvisions(detector: Detector) -> GeneralizedRCNN:
    """torchvision's own Mask R-CNN around the same modules, which neither scales nor normalises."""
    transform = GeneralizedRCNNTransform(64, 256, [0.0] * 3, [1.0] * 3, size_divisible=64, _skip_resize=True)
    return GeneralizedRCNN(Backbone(detector), detector.rpn, detector.roi_heads, transform)


def targets() -> list[Target]:
    masks = torch.zeros(2, 64, 128, dtype=torch.uint8)
    masks[0, 10:30, 20:60] = 1
    masks[1, 40:64, 100:128] = 1
    some = Target(
        boxes=torch.tensor([[20.0, 10, 60, 30], [100, 40, 128, 64]]),
        labels=torch.tensor([1, 3]),
        masks=masks,
        crowd=torch.zeros(2, dtype=torch.bool),
        area=torch.tensor([800.0, 672]),
    )
    return [some, some.at(torch.tensor([], dtype=torch.int64))]


@pytest.mark.parametrize("backbone", ENCODERS)
def test_losses_are_torchvisions_and_reach_every_weight(backbone: str) -> None:
    detector = small_detector(backbone).train()
    images = torch.randn(2, 3, 64, 128)
    torch.manual_seed(1)  # of the samples of anchors and proposals
    losses = detector(images, [(64, 128)] * 2, targets())
    torch.manual_seed(1)
    wanted: list[dict[str, Any]] = [target._asdict() for target in targets()]
    theirs = torchvisions(detector)(list(images), wanted)
    assert losses.keys() == theirs.keys()
    for name, loss in losses.items():
        assert torch.equal(loss, theirs[name]), name
    sum(losses.values()).backward()  # pyright: ignore
    assert [name for name, value in detector.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("backbone", ENCODERS)
def test_detections_at_one_size_are_torchvisions(backbone: str) -> None:
    detector = small_detector(backbone)
    detector.roi_heads.score_thresh, detector.roi_heads.detections_per_img = 0.0, 20
    image = torch.randn(3, 64, 128)
    found = detect(detector, image, ONCE)
    with torch.no_grad():
        theirs = torchvisions(detector).eval()([image])[0]
    assert len(found.boxes) == 20
    assert torch.allclose(found.boxes, theirs["boxes"], atol=1e-4)
    assert torch.equal(found.labels, theirs["labels"]) and torch.equal(found.scores, theirs["scores"])
    # The boxes went to the image's pixels and back: masks may differ where they are at one half.
    assert ((theirs["masks"][:, 0] > 0.5) != found.masks).float().mean() < 1e-3


@pytest.mark.parametrize("backbone", ENCODERS)
def test_padding_changes_no_map_beyond_the_convolutions_that_reach_it(backbone: str) -> None:
    detector, size = small_detector(backbone).double(), (90, 150)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    padded = torch.full((2, 3, 256, 320), 7.0, dtype=torch.float64)  # whatever the padding holds
    padded[:1, :, : size[0], : size[1]] = image
    with torch.no_grad():
        alone = detector.features(image, [size])
        batched = detector.features(padded, [size, (256, 320)])
    for name, own in alone.items():
        stride = 64 if name == "pool" else int(name)
        # Of each level, the FPN's last convolution reaches one site.
        height, width = (-(-side // stride) - 1 for side in size)
        one, other = own[0, :, :height, :width], batched[name][0, :, :height, :width]
        assert (one - other).abs().max() < 1e-12 * own.abs().max(), name


def test_an_image_and_its_mirror_image_give_mirrored_detections_with_the_flip_test() -> None:
    detector, image = small_detector(), torch.randn(3, 64, 128)
    with torch.no_grad():
        detector.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(100)  # masks with edges
    test = dataclasses.replace(ONCE, flip=True, short_sides=(64, 96))
    here, there = detect(detector, image, test), detect(detector, image.flip(-1), test)
    assert not torch.allclose(detect(detector, image, ONCE).scores, here.scores)
    assert torch.allclose(here.scores, there.scores, atol=1e-5)
    left, top, right, bottom = there.boxes.unbind(dim=1)
    assert torch.allclose(here.boxes, torch.stack([128 - right, top, 128 - left, bottom], dim=1), atol=1e-2)
    # Pasting rounds the boxes down, so mirrored masks differ along their edges.
    assert (here.masks & there.masks.flip(-1)).sum() > 0.6 * here.masks.sum() > 0


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (63, 65), (200, 20)])
def test_images_of_any_size_and_aspect_are_looked_at(size: tuple[int, int]) -> None:
    found: Detections = detect(small_detector(), torch.randn(3, *size), ONCE)
    assert found.masks.shape == (len(found.boxes), *size) and len(found.boxes) > 0
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2] <= size[1] + 1e-3).all() and (found.boxes[:, 3] <= size[0] + 1e-3).all()


def test_nothing_above_the_threshold_is_no_error() -> None:
    found = detect(small_detector(), torch.randn(3, 64, 64), dataclasses.replace(ONCE, score_threshold=1.0))
    assert found.masks.shape == (0, 64, 64) and found.boxes.shape == (0, 4)


def test_the_papers_other_heads_are_built() -> None:
    config: DetectorConfig = dataclasses.replace(SMALL, box_head="4conv1fc", rpn_convs=2, norm="layer")
    detector = small_detector(config=config).train()
    losses = detector(torch.randn(2, 3, 64, 128), [(64, 128)] * 2, targets())
    assert all(loss.isfinite() for loss in losses.values())
    names = [name for name, _ in detector.named_parameters()]
    assert any("rpn.head.conv.1" in name for name in names)
    assert len([name for name in names if name.startswith("roi_heads.box_head") and "weight" in name]) == 9
