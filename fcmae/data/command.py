"""`fcmae data`: what a set of images is made of (stats), and its images resized into shards (shard)."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fcmae.arguments import OptionParser
from fcmae.config import DataConfig, require
from fcmae.data.dataset import ImageDataset
from fcmae.data.folders import find_images
from fcmae.data.sources import FolderDataset, open_dataset
from fcmae.data.stats import Kind, Stats, kinds, measure, save_picture
from fcmae.errors import InputError

SHOWN_BAD = 20
"""Unreadable images that the table names; the JSON names all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fcmae data stats` or `fcmae data shard`; 0 when it is done.

    Raises:
        InputError: an option or the images cannot be used.
    """
    name, *rest = argv or [""]
    if name == "stats":
        return _stats(rest)
    if name in ("-h", "--help"):
        print("usage: fcmae data stats ...\n\nfcmae data stats --help describes its options.")
        return 0
    raise InputError(f"data: expected stats, got {name or 'none'}. Write fcmae data stats DIR.")


def _stats_parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        "fcmae data stats", "Mean and deviation of each channel, sizes, formats and unreadable files."
    )
    parser.add_argument("root", metavar="DIR", help="as data.root: a folder of images, or a .npy file")
    parser.add_argument("--source", choices=("folder", "arrays"), default="folder", help="as data.source")
    parser.add_argument(
        "--in-chans",
        type=int,
        metavar="C",
        help="as data.in_chans (default: that of most files; of arrays: 3)",
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="look at N images at even distances (default: all)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="W", help="processes that decode (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to this file")
    parser.add_argument("--out", type=Path, metavar="PNG", help="draw the sizes")
    return parser


def _stats(argv: Sequence[str]) -> int:
    arguments = _stats_parser().parse_args(argv)
    for name in ("in_chans", "sample"):
        value = getattr(arguments, name)
        require(value is None or value >= 1, f"--{name.replace('_', '-')}: expected at least 1, got {value}.")
    require(arguments.workers >= 0, f"--workers: expected 0 or more, got {arguments.workers}.")
    dataset, found = _open(arguments)
    stats = measure(dataset, _sampled(len(dataset), arguments.sample), workers=arguments.workers)
    print(_table(stats, found, total=len(dataset)))
    if arguments.json is not None:
        formats = [{**kind._asdict(), "images": count} for kind, count in found.most_common()]
        _write(arguments.json, json.dumps({**stats.to_dict(), "formats": formats}, indent=1) + "\n")
    if arguments.out is not None:
        try:
            save_picture(arguments.out, stats)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--out: expected to write {arguments.out}, got: {error}. Choose another."
            ) from error
        print(f"wrote {arguments.out}")
    return 0


def _open(arguments: argparse.Namespace) -> tuple[ImageDataset, Counter[Kind]]:
    if arguments.source != "folder":
        config = DataConfig(source=arguments.source, root=arguments.root, in_chans=arguments.in_chans or 3)
        return open_dataset(config, split="all", labelled=False), Counter()
    paths = find_images(os.path.expanduser(arguments.root), field="data.root")
    found = kinds(paths[index] for index in _sampled(len(paths), arguments.sample))
    channels: Counter[int] = Counter()
    for kind, count in found.items():
        channels[kind.channels] += count
    in_chans = arguments.in_chans or (channels.most_common(1)[0][0] if channels else 3)
    return FolderDataset(paths, in_chans=in_chans), found


def _sampled(count: int, sample: int | None) -> range | list[int]:
    if sample is None or sample >= count:
        return range(count)
    return [place * count // sample for place in range(sample)]


def _table(stats: Stats, found: Counter[Kind], *, total: int) -> str:
    facts = stats.to_dict()
    lines = [f"{stats.images} images read, {len(stats.bad)} unreadable, of {total}"]
    lines += [
        f"  {kind.format:<6} {kind.mode:<8} {kind.channels:>3} channels {count:>9}"
        for kind, count in found.most_common()
    ]
    lines.append(f"{'pixels':<14}{'min':>8}{'median':>10}{'max':>8}")
    for name in ("width", "height", "shorter_side"):
        spread = facts[name]
        lines.append(
            f"{name.replace('_', ' '):<14}{spread['min']:>8}{spread['median']:>10g}{spread['max']:>8}"
        )
    lines.append(f"{'channel':<14}{'mean':>8}{'std':>10}")
    for number, pair in enumerate(zip(facts["mean"], facts["std"], strict=True)):
        lines.append(f"{number:<14}{pair[0]:>8.4f}{pair[1]:>10.4f}")
    lines += [f"unreadable: {line}" for line in stats.bad[:SHOWN_BAD]]
    if len(stats.bad) > SHOWN_BAD:
        lines.append(f"unreadable: {len(stats.bad) - SHOWN_BAD} more; --json FILE names all")
    return "\n".join([*lines, "", stats.config_lines()])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--json: expected to write {path}, got: {error.strerror}. Choose another."
        ) from error
