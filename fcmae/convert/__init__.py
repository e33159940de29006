"""Checkpoint formats in and out: our pretraining checkpoints and those of other projects.

The command, which runs models, is in `fcmae.convert.command`.
"""

from fcmae.convert.dense import convert_weights, from_timm, to_timm
from fcmae.convert.families import detect_source
from fcmae.convert.load import load_weights
from fcmae.convert.networks.convnextv2 import Architecture
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source

__all__ = [
    "Architecture",
    "Report",
    "Source",
    "convert_weights",
    "detect_source",
    "from_timm",
    "load_weights",
    "open_source",
    "to_timm",
]
