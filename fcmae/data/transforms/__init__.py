"""From a decoded image of any size to what a network takes: random crops, views, and evaluation's crop."""

from fcmae.data.transforms.standard import (
    Transform,
    denormalise,
    eval_transform,
    finetune_transform,
    mean_std,
    pretrain_transform,
)
from fcmae.data.transforms.views import Views, ViewTransform, multi_crop

__all__ = [
    "Transform",
    "ViewTransform",
    "Views",
    "denormalise",
    "eval_transform",
    "finetune_transform",
    "mean_std",
    "multi_crop",
    "pretrain_transform",
]
