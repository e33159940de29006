"""COCO's average precision of boxes and masks."""

from typing import Any

from torch import distributed
from torchmetrics.detection import MeanAveragePrecision

from fcmae.downstream.detection.data.dataset import Target
from fcmae.downstream.detection.detect import Detections

_NAMES = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_small",
    "map_medium": "ap_medium",
    "map_large": "ap_large",
    "mar_100": "ar",
}
_KINDS = {"bbox": "box", "segm": "mask"}


class AveragePrecision:
    """COCO's metrics, by torchmetrics: crowds are neither found nor missed.

    In a run of several processes each adds its share of the images, which may be none, and all compute the
    whole's.

    Args:
        categories: (id, name) of each class.
        per_class: Also the AP of each class, which takes as long again.
    """

    def __init__(self, categories: tuple[tuple[int, str], ...], *, per_class: bool = False) -> None:
        self._categories = categories
        self._metric = MeanAveragePrecision(
            iou_type=("bbox", "segm"),
            class_metrics=per_class,
            backend="faster_coco_eval",
            sync_on_compute=False,  # it needs as many images of each process (torchmetrics 1.9)
        )
        self._metric.warn_on_many_detections = False  # COCO's best 100 count, as everywhere

    def add(self, found: Detections, target: Target) -> None:
        """Count what was found in an image against what is in it."""
        self._metric.update(
            [{key: value.cpu() for key, value in found._asdict().items()}],
            [
                {
                    "boxes": target.boxes,
                    "labels": target.labels,
                    "masks": target.masks.bool(),
                    "iscrowd": target.crowd.long(),
                    "area": target.area,
                }
            ],
        )

    def compute(self) -> dict[str, float]:
        """ "box_ap", "mask_ap" and more, in [0, 1]; of what no image holds, such as small instances, nothing.

        "ap" is the mean over overlaps of 0.5 to 0.95 and classes, "ap50" and "ap75" at one overlap, "ar" the
        recall of 100 detections an image. Per class, "box_ap/<name>" and "mask_ap/<name>".
        """
        metric = self._metric
        if distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, metric.metric_state)
            for name in metric.metric_state:
                setattr(metric, name, [entry for share in shares for entry in share[name]])
        result = metric.compute()
        found = {
            f"{_KINDS[kind]}_{ours}": float(result[f"{kind}_{theirs}"])
            for kind in _KINDS
            for theirs, ours in _NAMES.items()
        }
        if self._metric.class_metrics:
            for kind, ours in _KINDS.items():
                values = result[f"{kind}_map_per_class"].reshape(-1).tolist()
                for label, value in zip(result["classes"].reshape(-1).tolist(), values, strict=True):
                    found[f"{ours}_ap/{self._categories[label - 1][1]}"] = value
        return {name: value for name, value in found.items() if value >= 0}
