"""Checkpoint formats in and out: our pretraining checkpoints and timm's dense models.

The command, which runs models, is in `fcmae.convert.command`.
"""

from fcmae.convert.architecture import Architecture
from fcmae.convert.dense import from_timm, to_timm
from fcmae.convert.load import load_weights
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source
from fcmae.convert.transfer import detect_source

__all__ = [
    "Architecture",
    "Report",
    "Source",
    "detect_source",
    "from_timm",
    "load_weights",
    "open_source",
    "to_timm",
]
