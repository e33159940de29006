"""How a checkpoint's images became tensors: the defaults of an evaluation, and what it does otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcmae.config import DataConfig, PixelConfig
from fcmae.convert import open_source
from fcmae.data import mean_std

TIMM = "timm:"
"""Before the name of a model of timm, in the place of a checkpoint."""

# Of a run's `data`. Where the images lie, which have labels and how many processes read them is no part.
_TAKEN = (
    "source",
    "channel_axis",
    "image_size",
    "in_chans",
    "mean",
    "std",
    "crop_scale",
    "crop_ratio",
    "resize_8_bit",
    "flip",
)


def data_presets(checkpoints: Sequence[str]) -> dict[str, Any]:
    """`data.*` of the first checkpoint that says how it was trained; of other weights their channels alone.

    Args:
        checkpoints: As `fcmae evaluate` takes them.
    Returns:
        Values by dotted key; empty without checkpoints.
    Raises:
        InputError: one cannot be read.
    """
    sources = [open_source(path) for path in checkpoints if not path.startswith(TIMM)]
    for source in sources:
        saved = source.config.get("data")
        if saved is not None:
            return {f"data.{name}": _plain(saved[name]) for name in _TAKEN if name in saved}
    return {"data.in_chans": sources[0].architecture().in_chans} if sources else {}


def told_otherwise(saved: Mapping[str, Any], data: DataConfig) -> str | None:
    """What an evaluation does otherwise than a checkpoint's training, where it changes what is seen; or None.

    Args:
        saved: `data` of the checkpoint's config; empty where it has none.
        data: Of the evaluation, with as many channels.
    """
    if not saved:
        return None
    theirs = PixelConfig(in_chans=saved["in_chans"], mean=_plain(saved["mean"]), std=_plain(saved["std"]))
    before, now = (
        {"image_size": size, "mean": mean.tolist(), "std": std.tolist()}
        for size, (mean, std) in (
            (_sides(saved["image_size"]), mean_std(theirs)),
            (data.size, mean_std(data)),
        )
    )
    changed = [
        f"data.{name}={_text(now[name])}, trained with {_text(before[name])}"
        for name in now
        if now[name] != before[name]
    ]
    return "; ".join(changed) or None


def _plain(value: Any) -> Any:
    """Tuples for the lists that a checkpoint holds."""
    return tuple(value) if isinstance(value, list) else value


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _text(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
