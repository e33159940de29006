"""`fcmae data`: what a set of images is made of (stats), and its images resized into shards (shard)."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcmae.arguments import OptionParser
from fcmae.config import DataConfig, require
from fcmae.data.dataset import ImageDataset
from fcmae.data.sources import FolderDataset, open_dataset
from fcmae.data.sources.encoded import Decoding, EncodedDataset
from fcmae.data.sources.folders import find_images, label_by_folder
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
    if name == "shard":
        return _shard(rest)
    if name in ("-h", "--help"):
        print(
            "usage: fcmae data {stats,shard,samples} ...\n\n"
            "  stats    mean and deviation of each channel, sizes, formats and unreadable files\n"
            "  shard    pack images into WebDataset shards\n"
            "  samples  write annotated photographs to try detection and segmentation on\n\n"
            "fcmae data stats --help describes the options of one."
        )
        return 0
    raise InputError(
        f"data: expected stats, shard or samples, got {name or 'none'}. Write fcmae data stats DIR, "
        "fcmae data shard DIR OUT or fcmae data samples DIR."
    )


def _stats_parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        "fcmae data stats", "Mean and deviation of each channel, sizes, formats and unreadable files."
    )
    parser.add_argument(
        "root",
        metavar="DIR",
        help="as data.root: a folder of images, shards or Parquet files, or a .npy file",
    )
    _add_source(parser, "folder", "shards", "parquet", "arrays")
    parser.add_argument(
        "--in-chans",
        type=int,
        metavar="C",
        help="as data.in_chans (default: that of most files of a folder; else 3)",
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


def _add_source(parser: argparse.ArgumentParser, *sources: str) -> None:
    parser.add_argument("--source", choices=sources, default="folder", help="as data.source")
    parser.add_argument("--image-column", metavar="NAME", help="as data.image_column")
    parser.add_argument("--cache-dir", metavar="DIR", help="as data.cache_dir")


def _config(arguments: argparse.Namespace, **fields: Any) -> DataConfig:
    fields |= {"source": arguments.source, "root": arguments.root, "image_column": arguments.image_column}
    if arguments.cache_dir is not None:
        fields["cache_dir"] = arguments.cache_dir
    return DataConfig(**fields)


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
    config = _config(arguments, in_chans=arguments.in_chans or 3)
    if arguments.source != "folder":
        return open_dataset(config, split="all", labelled=False, full_size=True), Counter()
    paths = find_images(os.path.expanduser(arguments.root), field="data.root")
    found = kinds(paths[index] for index in _sampled(len(paths), arguments.sample))
    channels: Counter[int] = Counter()
    for kind, count in found.items():
        channels[kind.channels] += count
    in_chans = arguments.in_chans or (channels.most_common(1)[0][0] if channels else 3)
    return FolderDataset(paths, Decoding(in_chans=in_chans)), found


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


def _shard_parser() -> argparse.ArgumentParser:
    parser = OptionParser("fcmae data shard", "Pack images into WebDataset shards, for data.source=shards.")
    parser.add_argument(
        "root", metavar="DIR", help="a folder of images; its subfolders become classes. Or as data.root"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    _add_source(parser, "folder", "shards", "parquet")
    parser.add_argument("--classes", action="store_true", help="keep the classes of shards or of Parquet")
    parser.add_argument("--label-column", metavar="NAME", help="as data.label_column")
    parser.add_argument("--short-side", type=int, metavar="N", help="reduce the shorter side to N pixels")
    parser.add_argument("--format", choices=("jpg", "png", "webp"), default="jpg", help="default: jpg")
    parser.add_argument("--quality", type=int, default=90, metavar="Q", help="of jpg and webp (default: 90)")
    parser.add_argument("--shard-size", type=float, default=500, metavar="MB", help="default: 500")
    parser.add_argument("--workers", type=int, default=0, metavar="W", help="processes (default: 0)")
    return parser


def _shard(argv: Sequence[str]) -> int:
    # Here, as webdataset and tqdm are needed by nothing else of this package.
    from tqdm import tqdm

    from fcmae.data.shard_writer import MANIFEST, Encoding, write_shards

    arguments = _shard_parser().parse_args(argv)
    side = arguments.short_side
    require(side is None or side >= 1, f"--short-side: expected at least 1, got {side}.")
    require(1 <= arguments.quality <= 100, f"--quality: expected 1 to 100, got {arguments.quality}.")
    require(arguments.shard_size > 0, f"--shard-size: expected more than 0, got {arguments.shard_size:g}.")
    require(arguments.workers >= 0, f"--workers: expected 0 or more, got {arguments.workers}.")
    dataset = _open_encoded(arguments)
    manifest = write_shards(
        dataset,
        arguments.out,
        encoding=Encoding(short_side=side, format=arguments.format, quality=arguments.quality),
        shard_bytes=round(arguments.shard_size * 1e6),
        workers=arguments.workers,
        progress=lambda images: tqdm(images, total=len(dataset), unit="image", disable=None),
    )
    total = sum(shard["bytes"] for shard in manifest["shards"])
    print(
        f"{manifest['samples']} images in {len(manifest['shards'])} shards, {total / 1e6:.1f} MB, "
        f"{'no' if dataset.classes is None else len(dataset.classes)} classes, "
        f"{len(manifest['bad'])} unreadable: {arguments.out}"
    )
    for line in manifest["bad"][:SHOWN_BAD]:
        print(f"left out: {line}")
    if len(manifest["bad"]) > SHOWN_BAD:
        print(f"left out: {len(manifest['bad']) - SHOWN_BAD} more; {arguments.out / MANIFEST} names all")
    return 0


def _open_encoded(arguments: argparse.Namespace) -> EncodedDataset:
    config = _config(arguments, label_column=arguments.label_column)
    if arguments.source != "folder":
        dataset = open_dataset(config, split="all", labelled=arguments.classes)
        assert isinstance(dataset, EncodedDataset)
        return dataset
    root = os.path.expanduser(arguments.root)
    paths = find_images(root, field="DIR")
    prefix = len(os.path.join(root, ""))
    classes, labels = None, None
    if all(os.sep in path[prefix:] for path in paths):
        classes, labels = label_by_folder(root, paths, field="DIR")
    return FolderDataset(paths, Decoding(in_chans=3), labels=labels, classes=classes)
