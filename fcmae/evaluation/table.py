"""What an evaluation found: cells that say what they were measured on, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcmae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one protocol found of one encoder."""

    protocol: str
    """The column."""
    settings: str
    accuracies: Sequence[float]
    """One a list of few images; otherwise one."""
    train_images: int
    val_images: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One encoder under one protocol."""

    encoder: str
    """The checkpoint as it was named, or `random <backbone>`, of several networks with `as <checkpoint>`."""
    backbone: str
    parameters: int
    """Of the encoder."""
    protocol: str
    """k-NN, probe, `2 a class`, `1 %`, `0.5 blocks`, finetune."""
    settings: str
    accuracy: float
    """Share of the validation images whose class was told; over several lists their mean."""
    spread: float | None
    """Sample standard deviation over the lists; None: one measurement."""
    train_images: int
    val_images: int
    labels: str
    """`true`, or `shuffled`."""
    file: str
    """The file that was read; empty for random weights."""
    fingerprint: str
    """Of the encoder's weights."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells on the same images."""

    data: str
    """Which images, of which size."""
    train_images: int
    val_images: int
    classes: int
    largest_class: float
    """Share of the validation images in the largest class."""
    cells: Sequence[Cell]

    def text(self) -> str:
        """A row an encoder, a column a protocol, accuracy in %; below it what every column is."""
        protocols = list(dict.fromkeys(cell.protocol for cell in self.cells))
        rows = list(dict.fromkeys((cell.encoder, cell.labels) for cell in self.cells))
        found = {(cell.encoder, cell.labels, cell.protocol): cell for cell in self.cells}
        backbones = {cell.encoder: cell.backbone for cell in self.cells}
        lines = [["encoder", "backbone", *protocols]]
        for encoder, labels in rows:
            name = encoder if labels == "true" else f"{encoder}, {labels} labels"
            values = [_value(found.get((encoder, labels, protocol))) for protocol in protocols]
            lines.append([name, backbones[encoder], *values])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        table = [
            "  ".join(
                text.ljust(width) if column < 2 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        settings = dict.fromkeys(f"{cell.protocol}: {cell.settings}" for cell in self.cells)
        return "\n".join(
            [
                f"Accuracy in % on {self.val_images} validation images of {self.data}, {self.classes} classes"
                f" (chance {100 / self.classes:.1f}, largest class {100 * self.largest_class:.1f}); "
                f"{self.train_images} training images; one centre crop each; frozen features, fine-tuning "
                "excepted.",
                "",
                *table,
                "",
                *settings,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def write_json(self, path: str | Path) -> None:
        """Write everything to a file.

        Raises:
            InputError: the system refuses.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"json: expected to write {path}, got: {error.strerror}. Choose another file."
            ) from error


def _value(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    spread = "" if cell.spread is None else f" ± {100 * cell.spread:.1f}"
    return f"{100 * cell.accuracy:.1f}{spread}"
