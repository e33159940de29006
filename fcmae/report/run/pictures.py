"""The reconstructions that a run left, as galleries."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fcmae.report import page
from fcmae.report.page import Html
from fcmae.report.reconstruction import rows_of
from fcmae.report.run.record import Event, RunRecord

_TIMES = 5
"""Reconstructions of an image, the first and the last of the run among them."""
_SIDE = 192
"""Pixels of a picture's longer side on the page; the run's folder keeps the whole ones."""

_CAPTION = (
    "Fixed images and masks, not augmented. Visible pixels are the image's own; hidden ones are predicted, "
    "with the mean and contrast of each patch taken from the image where the loss normalises patches."
)


def pictures_over_time(run: RunRecord) -> Html | None:
    """Original, visible, and what the network painted at a few steps from the first to the last."""
    events = run.of("reconstruction")
    count = min(_TIMES, len(events))
    places = [round(place * (len(events) - 1) / max(1, count - 1)) for place in range(count)]
    return _gallery(run, [events[place] for place in places])


def latest_pictures(run: RunRecord) -> Html | None:
    """Original, visible, and what the network painted last."""
    return _gallery(run, run.of("reconstruction")[-1:])


def _gallery(run: RunRecord, events: Sequence[Event]) -> Html | None:
    rows: list[tuple[str, Tensor]] = []
    names: Sequence[str] = ()
    for event in events:
        try:
            with Image.open(run.folder / event["file"]) as file:
                sheet = torch.from_numpy(np.array(file.convert("RGB")))
        except OSError:  # deleted since, or cut off
            continue
        original, visible, painted = rows_of(sheet, rows=3, count=len(event["names"]))
        if len(event["names"]) != len(names):  # the first, or other images: some became unreadable
            names, rows = event["names"], [("original", original), ("visible", visible)]
        rows.append((f"step {event['step']:,}", painted))
    if not rows:
        return None
    order = f"From top to bottom: {', '.join(label for label, _ in rows)}. "  # a phone shows no labels
    return page.gallery([(label, _small(row)) for label, row in rows], names=names, caption=order + _CAPTION)


def _small(pictures: Tensor) -> Tensor:
    """At most _SIDE pixels wide and high, uint8 [B, H, W, 3]."""
    height, width = pictures.shape[1:3]
    if max(height, width) <= _SIDE:
        return pictures
    factor = _SIDE / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    smaller = F.interpolate(pictures.permute(0, 3, 1, 2).float(), size=size, mode="area")
    return smaller.round().to(torch.uint8).permute(0, 2, 3, 1)
