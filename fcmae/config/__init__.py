"""What a run is made of: the only place where defaults live.

A YAML file holds the differences from these defaults, one file a run; `--section.field=value` overrides both.
Lengths of training are counted in optimiser steps, learning rates as `base_lr` per 256 images:
`lr = base_lr * batch_size * accumulate * devices / 256`.
"""

from fcmae.config.checks import check_range, require
from fcmae.config.convmae import ConvMAEConfig
from fcmae.config.data import DataConfig, PixelConfig
from fcmae.config.detection import DetectConfig, DetectDataConfig, DetectorConfig, DetectTestConfig
from fcmae.config.diversity import DiversityConfig
from fcmae.config.downstream import AnnotatedConfig, DownstreamTrainConfig, PyramidConfig
from fcmae.config.evaluate import (
    FROZEN,
    PROTOCOLS,
    TUNED,
    EvaluateConfig,
    KnnConfig,
    LowShotConfig,
    PartialConfig,
    ProbeConfig,
    TuningConfig,
)
from fcmae.config.mae import MAEConfig
from fcmae.config.methods import METHOD_CONFIGS
from fcmae.config.model import (
    DECODERS,
    EXECUTIONS,
    GATINGS,
    ClassifierConfig,
    Decoder,
    Execution,
    FCMAEConfig,
    Gating,
    ModelConfig,
)
from fcmae.config.msn import MSNConfig
from fcmae.config.runs import FinetuneConfig, PretrainConfig, RunConfig
from fcmae.config.segmentation import SegmentConfig, SegmentDataConfig, SegmenterConfig, SegmentTestConfig
from fcmae.config.train import FinetuneTrainConfig, PretrainTrainConfig, TrainConfig

__all__ = [
    "DECODERS",
    "EXECUTIONS",
    "FROZEN",
    "GATINGS",
    "METHOD_CONFIGS",
    "PROTOCOLS",
    "TUNED",
    "AnnotatedConfig",
    "ClassifierConfig",
    "ConvMAEConfig",
    "DataConfig",
    "Decoder",
    "DetectConfig",
    "DetectDataConfig",
    "DetectTestConfig",
    "DetectorConfig",
    "DiversityConfig",
    "DownstreamTrainConfig",
    "EvaluateConfig",
    "Execution",
    "FCMAEConfig",
    "FinetuneConfig",
    "FinetuneTrainConfig",
    "Gating",
    "KnnConfig",
    "LowShotConfig",
    "MAEConfig",
    "MSNConfig",
    "ModelConfig",
    "PartialConfig",
    "PixelConfig",
    "PretrainConfig",
    "PretrainTrainConfig",
    "ProbeConfig",
    "PyramidConfig",
    "RunConfig",
    "SegmentConfig",
    "SegmentDataConfig",
    "SegmentTestConfig",
    "SegmenterConfig",
    "TrainConfig",
    "TuningConfig",
    "check_range",
    "require",
]
