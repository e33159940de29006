"""Detectors small enough for tests, on each kind of encoder."""

import torch

from fcmae.config import DetectorConfig
from fcmae.downstream import create_pyramid
from fcmae.downstream.detection.model import Detector

ENCODERS = {
    "convnextv2_atto": {},
    "convmae_small": {"num_heads": 8, "window_size": 2},
    "vit_tiny_patch16": {"window_size": 2},
}
SMALL = DetectorConfig(fpn_dim=16, head_dim=32, anchor_sizes=(8, 16, 32, 64, 128))


def small_detector(backbone: str = "convnextv2_atto", config: DetectorConfig = SMALL) -> Detector:
    """Random weights everywhere, also where initial ones are 0: norms, biases and GRN do something."""
    detector = Detector(create_pyramid(backbone, image_size=64, **ENCODERS[backbone]), config, classes=3)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return detector.eval()
