"""`fcmae segment eval` and `fcmae segment predict`: what a trained segmenter makes of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from fcmae.arguments import OptionParser
from fcmae.config import SegmentConfig
from fcmae.config_io import to_dict
from fcmae.data import UnreadableImageError, decode_image
from fcmae.downstream.segmentation.dataset import open_label_maps
from fcmae.downstream.segmentation.evaluate import evaluate, predict
from fcmae.downstream.segmentation.metrics import intersection_over_union, scores
from fcmae.downstream.segmentation.model import Segmenter
from fcmae.downstream.segmentation.pictures import save_label_map, save_overlay
from fcmae.downstream.segmentation.train import KIND, build_segmenter, told_left_out
from fcmae.downstream.trained import cannot_write, eval_or_predict, load_trained, named_images, parse_options
from fcmae.errors import InputError
from fcmae.training.engine.devices import launch_fabric


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fcmae segment eval` or `predict`; 0 when it is done.

    Raises:
        InputError: an option, the checkpoint or the images cannot be used.
    """
    return eval_or_predict("segment", argv, evaluate=_eval, predict=_predict)


def load_segmenter(path: str | Path, argv: Sequence[str] = ()) -> tuple[Segmenter, SegmentConfig, Path, int]:
    """A trained segmenter in evaluation mode.

    Args:
        path: A run folder (its newest readable checkpoint), or a checkpoint.
        argv: Options that override its configuration, `--test.flip=true`.
    Returns:
        (segmenter, configuration for one device, file, optimiser steps done).
    Raises:
        InputError: no readable checkpoint of `fcmae segment train`, or options that change the model.
    """
    state, config, file = load_trained(SegmentConfig, path, argv, kind=KIND)
    model = build_segmenter(config, state["pyramid"])
    model.load_state_dict(state["model"])
    return model.eval(), config, file, state["step"]


def _eval(argv: list[str]) -> int:
    parser = OptionParser(
        "fcmae segment eval", "Measure a segmenter on the validation images of its configuration."
    )
    parser.add_argument("run", metavar="RUN", help="a run folder of fcmae segment train, or a checkpoint")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers to this JSON file, too")
    arguments, options = parse_options(parser, SegmentConfig, argv)
    model, config, file, step = load_segmenter(arguments.run, options)
    dataset, left_out = open_label_maps(config.data, split="val")
    for line in told_left_out(left_out, "validation"):
        print(line)
    fabric = _launch(config, model)
    bad: list[str] = []

    def noted(batches: Any) -> Any:
        for batch in batches:
            bad.extend(batch.bad)
            yield batch

    counts = evaluate(fabric, model, dataset, config, noted=noted).cpu()
    for line in bad:
        print(f"skipped {line}")
    found, shares = scores(counts), intersection_over_union(counts)
    print(f"{file}, step {step}: {len(dataset) - len(bad)} images")
    print("  ".join(f"{name} {value:.4f}" for name, value in found.items()))
    print(f"{'class':>6}{'IoU':>8}{'pixels':>12}")
    for number, (share, pixels) in enumerate(zip(shares.tolist(), counts.sum(1).tolist(), strict=True)):
        print(f"{number:>6}{share:>8.4f}{pixels:>12}")
    if arguments.out is not None:
        content = {
            "checkpoint": str(file),
            "step": step,
            "images": len(dataset) - len(bad),
            "skipped": bad,
            "left_out": left_out,
            **found,
            "IoU": [None if share != share else share for share in shares.tolist()],
            "pixels": counts.tolist(),
            "config": to_dict(config),
        }
        try:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise cannot_write(arguments.out, error) from error
        print(f"wrote {arguments.out}")
    return 0


def _predict(argv: list[str]) -> int:
    parser = OptionParser("fcmae segment predict", "Write the label maps that a segmenter gives to images.")
    parser.add_argument("run", metavar="RUN", help="a run folder of fcmae segment train, or a checkpoint")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, and folders of such")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where NAME.png go")
    parser.add_argument(
        "--overlays",
        action="store_true",
        help="write DIR/overlays/NAME.jpg, the classes over the images, too",
    )
    arguments, options = parse_options(parser, SegmentConfig, argv)
    names = named_images(arguments.images)
    model, config, _, _ = load_segmenter(arguments.run, options)
    fabric = _launch(config, model)
    skipped = 0
    for name, path in names.items():
        try:
            image = decode_image(path, in_chans=config.data.in_chans, keep_8_bit=True)
        except UnreadableImageError as error:
            print(f"skipped {error}")
            skipped += 1
            continue
        classes = predict(fabric, model, fabric.to_device(image), config)
        try:
            save_label_map(classes, arguments.out / f"{name}.png", config.data)
            if arguments.overlays:
                overlay = arguments.out / "overlays" / f"{name}.jpg"
                save_overlay(image, classes, overlay, num_classes=config.data.num_classes)
        except OSError as error:
            raise cannot_write(arguments.out, error) from error
    if skipped == len(names):
        raise InputError(f"IMAGES: expected a readable image, got {skipped} unreadable. Check the files.")
    print(f"wrote {len(names) - skipped} label maps to {arguments.out}")
    return 0


def _launch(config: SegmentConfig, model: torch.nn.Module) -> Fabric:
    fabric = launch_fabric(config.run, config.train)
    model.to(fabric.device)
    return fabric
