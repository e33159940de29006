"""`fcmae bench data`: our loader against torchvision's ImageFolder with the same crops, on one core.

All read the same folder in this process on one thread, in turns, so that a change of the machine's speed
meets all alike. The rate counts processor time: what a core that does nothing else would deliver. Nothing
is timed unless both decode every compared image to the same pixels. Our loader is timed as it is by default,
with data.resize_8_bit, and with data.transform_on=device, of which it is the loader's half.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from fcmae.arguments import OptionParser
from fcmae.config import DataConfig, require
from fcmae.data import decode_image, mean_std, open_dataset, pretrain_transform, training_batches
from fcmae.errors import InputError
from fcmae.machine import machine

COMPARED = 8
"""Images whose pixels must agree before anything is timed."""


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser("fcmae bench data", __doc__)
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="folder of class folders (default: made-up JPEGs)"
    )
    parser.add_argument("--images", type=int, default=256, metavar="N", help="of a round (default: 256)")
    parser.add_argument(
        "--jpeg-size",
        type=int,
        nargs=2,
        default=(500, 375),
        metavar=("W", "H"),
        help="of made-up JPEGs (default: 500 375, an average of ImageNet)",
    )
    parser.add_argument("--image-size", type=int, default=224, metavar="S", help="of the crop (default: 224)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="default: 32")
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="timed, of each arm (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table and write its JSON.

    Raises:
        InputError: an option or the images cannot be used, or both loaders see other pixels.
    """
    arguments = _parser().parse_args(argv)
    for name in ("images", "image_size", "batch_size", "rounds"):
        value = getattr(arguments, name)
        require(value >= 1, f"--{name.replace('_', '-')}: expected at least 1, got {value}.")
    require(
        min(arguments.jpeg_size) >= 1, f"--jpeg-size: expected positive sides, got {arguments.jpeg_size}."
    )
    with _folder(arguments) as root, _one_thread():
        config = DataConfig(root=str(root), image_size=arguments.image_size, workers=0)
        arms = _arms(config, batch_size=arguments.batch_size, count=arguments.images)
        results = measure(arms, rounds=arguments.rounds)
    facts = machine()
    print(f"{facts['processor']}, torch {facts['torch']}, one thread, medians of {arguments.rounds} rounds")
    print(format_table(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
    return 0


Arm = Callable[[], Iterator[int]]
"""Makes the batches of one round, and gives the images of each."""


def _arms(config: DataConfig, *, batch_size: int, count: int) -> dict[str, Arm]:
    batches = -(-count // batch_size)

    def ours(**options: Any) -> Arm:
        own = replace(config, **options)
        dataset, transform = open_dataset(own, split="all", labelled=True), pretrain_transform(own)
        plan: dict[str, Any] = {"batch_size": batch_size, "seed": 0, "stop": batches, "workers": 0}
        # Of a function, not known to leave anything to the device, the batches stay as the loader makes them.
        made = transform.__call__
        return lambda: (batch.size for batch in training_batches(dataset, made, **plan))

    arms = {
        "fcmae": ours(),
        "resize_8_bit": ours(resize_8_bit=True),
        "transform_on=device": ours(transform_on="device"),
    }
    mean, std = (values.tolist() for values in mean_std(config))
    assert config.root is not None
    # As the original code of MAE and of ConvNeXt V2 has it.
    others = ImageFolder(
        config.root,
        v2.Compose(
            [
                v2.RandomResizedCrop(
                    config.size,
                    scale=config.crop_scale,
                    ratio=config.crop_ratio,
                    interpolation=InterpolationMode.BICUBIC,
                ),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        ),
    )
    require_parity([path for path, _ in others.samples[:COMPARED]])

    def theirs() -> Iterator[int]:
        sampler = torch.utils.data.RandomSampler(others, num_samples=batches * batch_size)
        return (len(images) for images, _ in DataLoader(others, batch_size=batch_size, sampler=sampler))

    return {**arms, "torchvision": theirs}


def require_parity(paths: Sequence[str]) -> None:
    """Refuse images that both decode to other pixels, at full size.

    Raises:
        InputError: naming the first.
    """
    for path in paths:
        with Image.open(path) as image:
            expected = TF.pil_to_tensor(image.convert("RGB"))
        # As bytes: torchvision multiplies by the rounded 1 / 255 where we divide.
        if not torch.equal((255 * decode_image(path, in_chans=3)).round().byte(), expected):
            raise InputError(
                f"bench data: expected the same pixels from both loaders, got others from {path}. Turned and "
                "transparent images are read in different ways; leave them out."
            )


def measure(arms: dict[str, Arm], *, rounds: int) -> list[dict[str, Any]]:
    """Images per second of each arm: one round each to warm up, then in turns.

    Returns:
        Of each arm its name, the images of a round, and of each round the seconds of the processor and of the
        clock, with the medians of the rates.
    """
    results = [{"arm": name, "images": 0, "cpu_seconds": [], "seconds": []} for name in arms]
    for number in range(rounds + 1):
        for arm, result in zip(arms.values(), results, strict=True):
            cpu, clock = time.process_time(), time.perf_counter()
            result["images"] = sum(arm())
            if number:
                result["cpu_seconds"].append(time.process_time() - cpu)
                result["seconds"].append(time.perf_counter() - clock)
    for result in results:
        result["images_per_cpu_second"] = result["images"] / statistics.median(result["cpu_seconds"])
        result["images_per_second"] = result["images"] / statistics.median(result["seconds"])
    return results


def format_table(results: list[dict[str, Any]]) -> str:
    """The results as text; ratios are to the last arm, round by round."""
    lines = [f"{'loader':<20}{'img/s of a core':>18}{'img/s by clock':>18}{'ratio':>8}"]
    for result in results:
        pairs = zip(results[-1]["cpu_seconds"], result["cpu_seconds"], strict=True)
        ratio = statistics.median(base / own for base, own in pairs)
        lines.append(
            f"{result['arm']:<20}{result['images_per_cpu_second']:>18.1f}{result['images_per_second']:>18.1f}"
            f"{ratio:>8.2f}"
        )
    return "\n".join(lines)


@contextmanager
def _folder(arguments: argparse.Namespace) -> Iterator[Path]:
    if arguments.root is not None:
        yield Path(arguments.root).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        for number in range(min(arguments.images, 256)):
            _made_up(arguments.jpeg_size, seed=number).save(
                Path(folder) / "images" / f"{number:03d}.jpg", quality=90
            )
        yield Path(folder)


def _made_up(size: Sequence[int], *, seed: int) -> Image.Image:
    """Smooth noise with some grain: about as many bytes a pixel as a photograph has."""
    generator = np.random.default_rng(seed)
    width, height = size
    coarse = generator.integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = generator.integers(-8, 9, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
