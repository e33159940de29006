"""`fcmae reconstruct`: pictures of what a pretrained model makes of masked images."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcmae.arguments import OptionParser
from fcmae.config import DataConfig
from fcmae.convert.files import read_checkpoint, read_newest_checkpoint
from fcmae.data import open_dataset
from fcmae.errors import InputError
from fcmae.report.reconstruction import save_rows
from fcmae.report.samples import draw_visible, load_method, picture_rows, read_images

PER_FIGURE = 8
"""Images of one PNG; more would be too small to see."""


def build_parser() -> argparse.ArgumentParser:
    """The options of `fcmae reconstruct`."""
    parser = OptionParser(
        "fcmae reconstruct", "Write PNGs with rows of original, visible and reconstructed images."
    )
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        help="a pretraining checkpoint, or a run folder (its newest readable checkpoint)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data.root", dest="root", metavar="DIR", help="folder of images (default: those of the run)"
    )
    source.add_argument(
        "--digits", action="store_true", help="scikit-learn's scanned digits instead of a folder"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where the PNGs go (default: reconstructions/ in the run folder)"
    )
    parser.add_argument("--count", type=int, default=8, metavar="N", help="number of images (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the masks (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the pictures were written.

    Raises:
        InputError: an option, the checkpoint, the images or the output folder cannot be used.
    """
    arguments = build_parser().parse_args(argv)
    if arguments.count < 1:
        raise InputError(f"--count: expected at least 1, got {arguments.count}.")
    path, checkpoint = _read(Path(arguments.checkpoint))
    method, config = load_method(path, checkpoint)
    data = _source(config.data, arguments)
    names, images, bad = read_images(
        open_dataset(data, split="all", labelled=False), data, count=arguments.count
    )
    for line in bad:
        print(f"skipped {line}")

    out = Path(arguments.out) if arguments.out else _run_folder(path) / "reconstructions"
    visible = draw_visible(method, images, seed=arguments.seed)
    for first in range(0, len(images), PER_FIGURE):
        part = slice(first, first + PER_FIGURE)
        file = out / f"reconstructions_{first // PER_FIGURE + 1:03d}.png"
        rows = picture_rows(method, images[part], visible[part], data)
        try:
            save_rows(file, rows, titles=[Path(name).name for name in names[part]])
        except OSError as error:
            raise InputError(
                f"--out: expected to write {file}, got: {error.strerror}. Choose another folder."
            ) from error
        print(f"wrote {file}")
    return 0


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    if not path.is_dir():
        return path, read_checkpoint(path)
    newest = read_newest_checkpoint(path)
    if newest is None:
        raise InputError(
            f"checkpoint: expected step_*.pt files in {path}, got none. Name a run folder or a file."
        )
    found, checkpoint, refused = newest
    for line in refused:
        print(f"refused {line}")
    return found, checkpoint


def _source(config: DataConfig, arguments: argparse.Namespace) -> DataConfig:
    if arguments.digits:
        return dataclasses.replace(config, source="digits", root=None)
    if arguments.root is not None:
        return dataclasses.replace(config, source="folder", root=arguments.root)
    return config


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
