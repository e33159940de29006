"""`fcmae detect eval` and `fcmae detect predict`: what a trained detector finds in images."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torchvision.ops import box_convert

from fcmae.arguments import OptionParser
from fcmae.config import DetectConfig
from fcmae.config_io import to_dict
from fcmae.data import Batch, UnreadableImageError, decode_image
from fcmae.downstream.detection.data.dataset import open_instances
from fcmae.downstream.detection.data.instances import encode_mask
from fcmae.downstream.detection.detect import Detections, detect
from fcmae.downstream.detection.evaluate import evaluate
from fcmae.downstream.detection.model import Detector
from fcmae.downstream.detection.pictures import draw_overlay, save_overlay
from fcmae.downstream.detection.train import KIND, Categories, build_detector
from fcmae.downstream.pixels import normalised
from fcmae.downstream.trained import cannot_write, eval_or_predict, load_trained, named_images, parse_options
from fcmae.errors import InputError
from fcmae.training.engine.devices import launch_fabric

_RUN = "a run folder of fcmae detect train, or a checkpoint"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fcmae detect eval` or `predict`; 0 when it is done.

    Raises:
        InputError: an option, the checkpoint or the images cannot be used.
    """
    return eval_or_predict("detect", argv, evaluate=_eval, predict=_predict)


def load_detector(
    path: str | Path, argv: Sequence[str] = ()
) -> tuple[Detector, DetectConfig, Categories, Path]:
    """A trained detector in evaluation mode.

    Args:
        path: A run folder (its newest readable checkpoint), or a checkpoint.
        argv: Options that override its configuration, `--test.flip=true`.
    Returns:
        (detector, configuration for one device, (id, name) of each class, file).
    Raises:
        InputError: no readable checkpoint of `fcmae detect train`, or options that change the model.
    """
    state, config, file = load_trained(DetectConfig, path, argv, kind=KIND)
    categories = tuple((category, name) for category, name in state["categories"])
    detector = build_detector(config, state, classes=len(categories))
    detector.load_state_dict(state["model"])
    return detector.eval(), config, categories, file


def _eval(argv: list[str]) -> int:
    parser = OptionParser(
        "fcmae detect eval", "Measure a detector on the validation images of its configuration."
    )
    parser.add_argument("run", metavar="RUN", help=_RUN)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers to this JSON file, too")
    arguments, options = parse_options(parser, DetectConfig, argv)
    detector, config, categories, file = load_detector(arguments.run, options)
    dataset, annotations = open_instances(config.data, split="val")
    for line in annotations.told():
        print(line)
    if annotations.categories != categories:
        raise InputError(
            f"data.annotations: expected the {len(categories)} categories of {file}, got "
            f"{len(annotations.categories)} that are not the same. Name the file that it was trained with."
        )
    fabric = _launch(config, detector)
    bad: list[str] = []

    def noting(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            bad.extend(batch.bad)
            yield batch

    found = evaluate(fabric, detector, dataset, config, categories=categories, noting=noting, per_class=True)
    for line in bad:
        print(f"skipped {line}")
    print(f"{file}: {len(dataset) - len(bad)} images")
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value:.4f}")
    if arguments.out is not None:
        content = {
            "checkpoint": str(file),
            "images": len(dataset) - len(bad),
            "skipped": bad,
            "left_out": annotations.skipped,
            **found,
            "config": to_dict(config),
        }
        _write_json(arguments.out, content)
        print(f"wrote {arguments.out}")
    return 0


def _predict(argv: list[str]) -> int:
    parser = OptionParser(
        "fcmae detect predict",
        "Write what a detector finds in images as COCO's results: DIR/predictions.json, whose image ids "
        "DIR/images.json lists.",
    )
    parser.add_argument("run", metavar="RUN", help=_RUN)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, and folders of such")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument(
        "--overlays",
        action="store_true",
        help="write DIR/overlays/NAME.png, what was found drawn over the image, too",
    )
    arguments, options = parse_options(parser, DetectConfig, argv)
    paths = named_images(arguments.images)
    detector, config, categories, _ = load_detector(arguments.run, options)
    fabric = _launch(config, detector)
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for name, path in paths.items():
        try:
            pixels = decode_image(path, in_chans=config.data.in_chans, keep_8_bit=True)
        except UnreadableImageError as error:
            print(f"skipped {error}")
            continue
        with fabric.autocast():
            found = detect(detector, fabric.to_device(normalised(pixels, config.data)), config.test)
        number = len(images) + 1
        images.append({"id": number, "file_name": path, "height": pixels.shape[1], "width": pixels.shape[2]})
        results += coco_results(found, number, categories)
        if arguments.overlays:
            shown = Detections(*(part[found.scores >= config.test.overlay_score] for part in found))
            overlay = draw_overlay(pixels, shown, [category for _, category in categories])
            path_out = arguments.out / "overlays" / f"{name}.png"
            try:
                save_overlay(overlay, path_out)
            except OSError as error:
                raise cannot_write(path_out, error) from error
    if not images:
        raise InputError(f"IMAGES: expected a readable image, got {len(paths)} unreadable. Check the files.")
    listed = [{"id": category, "name": name} for category, name in categories]
    _write_json(arguments.out / "images.json", {"images": images, "categories": listed})
    _write_json(arguments.out / "predictions.json", results)
    print(f"wrote {len(results)} instances in {len(images)} images to {arguments.out / 'predictions.json'}")
    return 0


def coco_results(found: Detections, image_id: int, categories: Categories) -> list[dict[str, Any]]:
    """COCO's results of an image: boxes as left, top, width, height; masks as run lengths.

    Args:
        found: In the image.
        image_id: Of the image.
        categories: (id, name) of each class.
    """
    boxes = box_convert(found.boxes, "xyxy", "xywh").tolist()
    return [
        {
            "image_id": image_id,
            "category_id": categories[label - 1][0],
            "bbox": [round(side, 2) for side in box],
            "score": round(score, 5),
            "segmentation": encode_mask(mask),
        }
        for box, label, score, mask in zip(
            boxes, found.labels.tolist(), found.scores.tolist(), found.masks, strict=True
        )
    ]


def _launch(config: DetectConfig, detector: torch.nn.Module) -> Fabric:
    fabric = launch_fabric(config.run, config.train)
    detector.to(fabric.device)
    return fabric


def _write_json(path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
