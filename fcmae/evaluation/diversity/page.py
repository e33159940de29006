"""The page that compares networks by the diversity of their features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fcmae.evaluation.diversity.measure import DEAD, MAPS, SATURATED, LayerDiversity
from fcmae.report import page, plots
from fcmae.report.page import INK, Column, Html

_ACROSS = 8  # maps in a row of a mosaic
_CELL = 28  # pixels of a map's side
_LAYERS = 4  # mosaics of a network

Found = Sequence[tuple[str, Sequence[LayerDiversity]]]
"""(name, layers) of each network."""


def write_diversity_page(
    path: Path,
    found: Found,
    *,
    images: str,
    modules: str,
    selective: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write the page.

    Args:
        path: The .html file.
        found: (name, layers) of each network.
        images: What was measured on.
        modules: The expression that chose the layers.
        selective: Class selectivity of each channel, by network and module; empty: not measured.
    """
    blocks: list[Html] = [
        page.section(
            "Cosine distance of the channels",
            page.paragraph(
                "Mean over all pairs of channels and all images of (1 - cosine) / 2. 0: all channels are the "
                "same up to a positive factor; orthogonal channels: (C - 1) / 2C, nearly 0.5."
            ),
            _curves(found, "distance", "cosine distance"),
        ),
        page.section(
            "Dead and saturated channels, effective rank",
            page.paragraph(
                f"Dead: nowhere in the image above {DEAD:g} of the layer's root mean square. Saturated: not "
                f"dead, and its standard deviation over the image is below {SATURATED:g} of its mean. Both "
                "as shares of the channels. Effective rank: the exponential of the singular values' entropy."
            ),
            page.columns(
                _curves(found, "dead", "dead channels, share"),
                _curves(found, "saturated", "saturated channels, share"),
                _curves(found, "effective_rank", "effective rank"),
            ),
        ),
        *([_selectivity(found, selective)] if selective else []),
        page.section("Activation maps", *(_map_figure(name, layers) for name, layers in found)),
        page.section("All layers", *(_table(name, layers) for name, layers in found)),
    ]
    page.write_page(
        path,
        title="Feature diversity",
        subtitle=f"{images}; features that modules matching {modules} read",
        blocks=blocks,
    )


def _curves(found: Found, field: str, label: str) -> Html:
    series = [(name, [getattr(layer, field) for layer in layers]) for name, layers in found]
    means = ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in series)
    return page.figure(
        plots.layer_curves(series, label=label),
        alt=f"{label} of each layer",
        caption=f"{label.capitalize()}, mean over the layers: {means}.",
    )


def _selectivity(found: Found, selective: Mapping[str, Mapping[str, Tensor]]) -> Html:
    means = [
        (name, [selective[name][layer.module].mean().item() for layer in layers]) for name, layers in found
    ]
    return page.section(
        "Class selectivity",
        page.paragraph(
            "Of a channel: the difference between its largest class mean and the mean of the others', "
            "over the sum of their absolute values. 0: all classes excite it alike; 1: one class alone does."
        ),
        page.columns(
            page.figure(
                plots.layer_curves(means, label="class selectivity"),
                alt="mean class selectivity of each layer",
                caption="Mean over the channels of each layer.",
            ),
            page.figure(
                plots.histograms(
                    [(name, torch.cat(list(layers.values())).tolist()) for name, layers in selective.items()],
                    label="class selectivity of a channel",
                ),
                alt="distribution of class selectivity over all channels",
                caption="Distribution over the channels of all layers.",
            ),
        ),
    )


def _table(name: str, layers: Sequence[LayerDiversity]) -> Html:
    columns = [
        Column(title="module"),
        Column(title="channels"),
        Column(title="sites"),
        Column(title="distance", format=".4f"),
        Column(title="dead", format=".3f"),
        Column(title="saturated", format=".3f"),
        Column(title="effective rank", format=".1f"),
    ]
    rows = [
        (
            layer.module,
            layer.channels,
            layer.sites,
            layer.distance,
            layer.dead,
            layer.saturated,
            layer.effective_rank,
        )
        for layer in layers
    ]
    return page.table(columns, rows, caption=f"{name}, {layers[0].images} images")


def _map_figure(name: str, layers: Sequence[LayerDiversity]) -> Html:
    count = min(_LAYERS, len(layers))
    chosen = [layers[(place + 1) * len(layers) // count - 1] for place in range(count)]
    drawn = Figure(figsize=(4.7, 5.1), layout="constrained")
    FigureCanvasAgg(drawn)
    for place, layer in enumerate(chosen):
        axes = drawn.add_subplot(2, 2, place + 1)
        axes.imshow(mosaic(layer.maps).numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(layer.module, fontsize=7, color=INK)
        axes.set_axis_off()
    return page.figure(
        drawn,
        alt=f"activation maps of {name}",
        caption=f"{name}: the first channels, at most {MAPS}, of the first image in {count} layers. "
        "Absolute values, 1 at the 99.5th percentile of the layer's maps; a dark square is a dead channel, "
        "an even one a saturated one.",
    )


def mosaic(maps: Tensor) -> Tensor:
    """Maps [N, h, w] as one picture [H, W] of rows of 8, absolute values, 1 at their 99.5th percentile."""
    values = maps.abs()
    top = values.flatten().quantile(0.995) if values.numel() < 2**24 else values.max()
    cells = F.interpolate((values / top.clamp(min=1e-12))[:, None].clamp(max=1), size=(_CELL, _CELL))[:, 0]
    cells = F.pad(cells, (0, 2, 0, 2), value=1.0)
    missing = -len(cells) % _ACROSS
    cells = torch.cat([cells, cells.new_ones(missing, *cells.shape[1:])])
    rows = [torch.cat(list(row), dim=1) for row in cells.split(_ACROSS)]
    return torch.cat(rows)[:-2, :-2]
