"""Images in, batches out: sources, decoding, transforms and deterministic loading."""

from fcmae.data.dataset import ImageDataset, Loaded
from fcmae.data.decode import IMAGE_EXTENSIONS, UnreadableImageError, decode_image
from fcmae.data.loader import Batch, evaluation_batches, training_batches
from fcmae.data.scans import write_scans
from fcmae.data.sources import ArrayDataset, DigitsDataset, FolderDataset, ShardDataset, open_dataset
from fcmae.data.transforms import (
    Transform,
    Views,
    ViewTransform,
    denormalise,
    eval_transform,
    finetune_transform,
    mean_std,
    multi_crop,
    pretrain_transform,
)
from fcmae.data.watch import explained

__all__ = [
    "IMAGE_EXTENSIONS",
    "ArrayDataset",
    "Batch",
    "DigitsDataset",
    "FolderDataset",
    "ImageDataset",
    "Loaded",
    "ShardDataset",
    "Transform",
    "UnreadableImageError",
    "ViewTransform",
    "Views",
    "decode_image",
    "denormalise",
    "eval_transform",
    "evaluation_batches",
    "explained",
    "finetune_transform",
    "mean_std",
    "multi_crop",
    "open_dataset",
    "pretrain_transform",
    "training_batches",
    "write_scans",
]
