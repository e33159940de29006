"""`--scale-to N`: a recipe's global batch on another number of devices."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from fcmae.config import DetectConfig, FinetuneConfig, PretrainConfig, SegmentConfig
from fcmae.config_io.load import load_config
from fcmae.errors import InputError

Config = TypeVar("Config", PretrainConfig, FinetuneConfig, DetectConfig, SegmentConfig)

SCALE_HELP = (
    "--scale-to N: run the recipe on N devices. Keeps its images a step by accumulation or takes the\n"
    "nearest number, never with more images a device, and says what it did."
)


def load_scaled(cls: type[Config], argv: Sequence[str]) -> tuple[Config, str | None]:
    """The configuration of `load_config`, scaled where `--scale-to N` is given, and a line that says how.

    `--train.batch_size` beside it is the most images that a device can take at once.

    Raises:
        InputError: as `load_config`; N is no number, or comes with options that it decides.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--scale-to", dest="devices", nargs="?", const="")
    known, options = parser.parse_known_args(argv)
    if known.devices is None:
        return load_config(cls, options), None
    if not known.devices.isdecimal() or int(known.devices) < 1:
        raise InputError(f"--scale-to: expected a number of devices, got {known.devices or 'none'}.")
    for name in ("--train.accumulate", "--run.devices", "--run.nodes"):
        if any(option.partition("=")[0] == name for option in options):
            raise InputError(f"--scale-to: expected no {name} beside it, which it decides. Leave one out.")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--train.batch_size")
    recipe = load_config(cls, parser.parse_known_args(options)[1])
    return scale(recipe, int(known.devices), batch_size=load_config(cls, options).train.batch_size)


def scale(recipe: Config, devices: int, *, batch_size: int) -> tuple[Config, str]:
    """`recipe` on another number of devices, and a line that says what changes.

    With G images a step in the recipe: accumulate = ceil(G / (batch_size * devices)), and each device takes
    G / (accumulate * devices) images at once, rounded. The learning rate follows the images by its own rule,
    base_lr * images / 256; steps and warm-up stay.

    Args:
        recipe: Its nodes have `run.devices` devices; more devices than that make several nodes.
        devices: Of all nodes.
        batch_size: The most images that a device can take at once.
    Raises:
        InputError: the devices do not fill whole nodes.
    """
    train, run = recipe.train, recipe.run
    if devices > run.devices and devices % run.devices:
        raise InputError(
            f"--scale-to: expected up to {run.devices} devices or a multiple (run.devices of the recipe), "
            f"got {devices}. Set --run.devices, --run.nodes and --train.accumulate instead."
        )
    images = train.batch_size * train.accumulate * run.devices * run.nodes
    accumulate = math.ceil(images / (batch_size * devices))
    # Mixup and CutMix pair the images of a forward pass; a decoded image's crops stay in one.
    paired = getattr(train, "mixup", 0) or getattr(train, "cutmix", 0)
    multiple = math.lcm(2 if paired else 1, getattr(recipe.data, "repeats", 1))
    batch_size = multiple * max(1, round(images / (devices * accumulate * multiple)))
    scaled = batch_size * accumulate * devices
    kept = f"{scaled} images a step, " + (
        "as in the recipe" if scaled == images else f"the nearest to its {images}"
    )
    line = (
        f"scaled to {devices} devices: {devices} x {batch_size} images x {accumulate} accumulated = {kept}; "
        f"learning rate {train.base_lr * scaled / 256:g} = base_lr {train.base_lr:g} x {scaled} / 256"
    )
    if isinstance(recipe, PretrainConfig) and recipe.model.method == "msn" and accumulate > 1:
        line += f"; MSN compares the {batch_size * devices} images of one forward pass only"
    nodes = max(1, devices // run.devices)
    return replace(
        recipe,
        train=replace(train, batch_size=batch_size, accumulate=accumulate),
        run=replace(run, devices=devices // nodes, nodes=nodes),
    ), line
