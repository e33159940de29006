"""Draw the picture of the README from a pretraining run: visible patches, their rows, the painting."""

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fcmae.convert.files import read_newest_checkpoint
from fcmae.data import open_dataset
from fcmae.errors import InputError
from fcmae.report.samples import draw_visible, load_method, picture_rows, read_images
from sparse_ops import SparseImage
from sparse_ops.sites import tile_order


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])


def _patches(axes: Axes, picture: Tensor, visible: Tensor, title: str) -> None:
    axes.imshow(picture)
    side = picture.shape[0] // visible.shape[0]
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for number, (y, x) in enumerate(visible.nonzero().tolist()):
        corner = (x * side - 0.5, y * side - 0.5)
        axes.add_patch(
            matplotlib.patches.Rectangle(corner, side, side, fill=False, lw=3, color=colours[number % 10])
        )
    _plain(axes, title)


def _z_order(axes: Axes, tile: int) -> None:
    order = tile_order(tile)
    axes.plot(order % tile, order // tile, marker="o", ms=5, lw=1.2, color="0.25")
    axes.set_xlim(-0.7, tile - 0.3)
    axes.set_ylim(tile - 0.3, -0.7)
    axes.set_aspect("equal")
    _plain(axes, f"a visible patch: {tile} x {tile} sites, in Z-order")


def _rows(axes: Axes, features: SparseImage) -> None:
    rows = features.features
    axes.imshow(rows, aspect="auto", cmap="RdBu", vmin=-2.5, vmax=2.5)
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    size = features.sites.tile**2
    for number in range(rows.shape[0] // size):
        axes.axhspan(number * size - 0.5, (number + 1) * size - 0.5, xmax=0.03, color=colours[number % 10])
    shape = f"{rows.shape[0]} x {rows.shape[1]}"
    _plain(axes, f"the sites of all visible patches: {shape} features")


def draw(run: Path, out: Path, *, image: int) -> None:
    """Write the picture of image number `image` of a run's data to `out`."""
    found = read_newest_checkpoint(run)
    if found is None:
        raise InputError(f"run: expected a pretraining run with a checkpoint, got none in {run}.")
    method, config = load_method(found[0], found[1])
    dataset = open_dataset(config.data, split="all", labelled=False)
    _, images, _ = read_images(dataset, config.data, count=image + 1)
    visible = draw_visible(method, images, seed=0)
    rows = {name: picture[-1] for name, picture in picture_rows(method, images, visible, config.data)}
    with torch.no_grad():
        features = method.encoder(images[-1:], visible=visible[-1:])[0]
    assert isinstance(features, SparseImage)

    figure = Figure(figsize=(14, 3.7), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1.3, 1))
    _patches(
        axes[0], rows["visible"], visible[-1], f"{int(visible[-1].sum())} of {visible[-1].numel()} patches"
    )
    _z_order(axes[1], features.sites.tile)
    _rows(axes[2], features)
    _patches(axes[3], rows["reconstructed"], visible[-1], "the decoder paints the others")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)


def main() -> int:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of a pretraining, such as runs/demo/pretrain")
    parser.add_argument("--out", type=Path, default=Path("docs/overview.png"))
    parser.add_argument("--image", type=int, default=5, help="which of the images")
    arguments = parser.parse_args()
    try:
        draw(arguments.run, arguments.out, image=arguments.image)
    except InputError as error:
        print(f"draw_overview: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
