"""Parquet files and Arrow datasets of images, as the library `datasets` writes and reads them."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcmae.config import DataConfig
from fcmae.data.decode import UnreadableImageError
from fcmae.data.sources.encoded import Decoding, EncodedDataset
from fcmae.errors import InputError

_SPLIT_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}")  # as datasets names the files of a split


class ParquetDataset(EncodedDataset):
    """The rows of a table, read through a memory map.

    Args:
        table: A `datasets.Dataset`.
        column: Of the images: their files' bytes, or structs of `bytes` and `path`.
        decoding: How they are read.
        name: What messages call the table.
        labels: Class of each image; None: unlabelled.
        classes: Names of the classes.
    """

    def __init__(
        self,
        table: Any,
        column: str,
        decoding: Decoding,
        *,
        name: str,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(decoding, labels=labels, classes=classes)
        # As Arrow: datasets would decode the images itself, to PIL's, without our rules and our errors.
        self._rows = table.select_columns([column]).with_format("arrow")
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def name_of(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def read(self, index: int) -> tuple[str, bytes]:
        name = self.name_of(index)
        try:
            value = self._rows[index].column(0)[0].as_py()
        except Exception as error:  # Arrow meets a damaged file with errors of many types
            raise UnreadableImageError(name, " ".join(str(error).split())) from error
        path = None
        if isinstance(value, Mapping):
            value, path = value.get("bytes"), value.get("path")
        if path:
            name = f"{name}/{os.path.basename(path)}"
        if not value and path:
            try:
                value = Path(path).read_bytes()
            except OSError as error:
                raise UnreadableImageError(name, str(error)) from error
        if not value:
            raise UnreadableImageError(name, "the row holds no image")
        return name, value

    def containers(self) -> list[str]:
        return [file["filename"] for file in self._rows.cache_files]


def open_parquet(
    root: str,
    config: DataConfig,
    *,
    field: str,
    decoding: Decoding,
    labelled: bool,
    classes: tuple[str, ...] | None = None,
) -> ParquetDataset:
    """The images of the table that `root` names.

    Args:
        root: As `config.root`.
        config: The columns, and where Arrow copies of Parquet files are kept.
        field: The setting that messages name.
        decoding: How the images are read.
        labelled: Whether their classes are wanted.
        classes: Those that they may have; None: any.
    Raises:
        InputError: the library is missing, no table, several splits in one folder, a file that cannot be
            read, no such column, or a row without a class.
    """
    root = os.path.expanduser(root)
    table = _open_table(root, os.path.join(os.path.expanduser(config.cache_dir), "parquet"), field)
    column = _image_column(table.features, config.image_column, root)
    labels = None
    if labelled:
        classes, labels = _labels(table, config.label_column, classes, field)
    return ParquetDataset(table, column, decoding, name=root, labels=labels, classes=classes)


def _open_table(root: str, cache_dir: str, field: str) -> Any:
    # Here, as it is an extra.
    try:
        from datasets import Dataset, load_from_disk
        from pyarrow.parquet import read_metadata
    except ImportError as error:
        raise InputError(
            "data.source: expected the library datasets, with which parquet is read, got none. "
            "Run pip install fcmae[datasets]."
        ) from error

    if os.path.exists(os.path.join(root, "dataset_dict.json")):
        splits = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        raise InputError(
            f"{field}: expected one split of a saved dataset, got {', '.join(splits)} in {root}. "
            f"Name one: {os.path.join(root, splits[0] if splits else 'SPLIT')}."
        )
    saved = os.path.exists(os.path.join(root, "state.json"))
    files = [] if saved else _parquet_files(root, field)
    name = root
    try:
        for name in files:  # whose own errors would not say which file
            read_metadata(name)
        # datasets takes paths for patterns, too.
        patterns = map(glob.escape, files)
        return load_from_disk(root) if saved else Dataset.from_parquet([*patterns], cache_dir=cache_dir)
    except Exception as error:  # of Arrow's, of datasets' and of the disk's many types
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"{field}: expected a table that Arrow can read, got: {reason}: {name}. Check the file."
        ) from error


def _parquet_files(root: str, field: str) -> list[str]:
    pattern = os.path.join(glob.escape(root), "*.parquet") if os.path.isdir(root) else root
    found = [root] if os.path.isfile(root) else glob.glob(pattern)
    files = sorted(path for path in found if os.path.isfile(path))
    if not files:
        raise InputError(
            f"{field}: expected .parquet files or a dataset saved by save_to_disk, got none: {root}. "
            "Check the path."
        )
    splits = {match[1] for path in files if (match := _SPLIT_FILE.match(os.path.basename(path)))}
    if len(splits) > 1:
        raise InputError(
            f"{field}: expected the files of one split, got {', '.join(sorted(splits))} in {root}. "
            f"Name one: '{os.path.join(os.path.dirname(pattern), min(splits))}-*.parquet'."
        )
    return files


def _image_column(features: Mapping[str, Any], wanted: str | None, root: str) -> str:
    columns = [name for name, feature in features.items() if _holds_bytes(feature)]
    if wanted is None and len(columns) == 1:
        return columns[0]
    if wanted not in columns:
        raise InputError(
            f"data.image_column: expected one of the columns that hold images "
            f"({', '.join(columns) or 'none'}), got {wanted or 'none'} for {root} with columns "
            f"{', '.join(features)}. Set it."
        )
    assert wanted is not None
    return wanted


def _holds_bytes(feature: Any) -> bool:
    from datasets import Image, Value

    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, Mapping) and "bytes" in feature)


def _labels(
    table: Any, wanted: str | None, known: tuple[str, ...] | None, field: str
) -> tuple[tuple[str, ...], list[int]]:
    """Classes, and the class of each row."""
    from datasets import ClassLabel

    named = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
    column = wanted or (named[0] if len(named) == 1 else "label")
    if column not in table.features:
        raise InputError(
            f"data.label_column: expected a column of classes, got no {column} among "
            f"{', '.join(table.features)}. Set it."
        )
    values = table.select_columns([column]).with_format("arrow")[:].column(0)
    if values.null_count:
        raise InputError(
            f"{field}: expected a class in every row, got {values.null_count} of {len(values)} without in "
            f"column {column}. Remove these rows, or set data.label_column."
        )
    found = values.to_numpy()
    if found.dtype.kind not in "iu":  # text
        names = tuple(sorted({str(value) for value in found}))
        number_of = {name: number for number, name in enumerate(known or names)}
        unknown = [name for name in names if name not in number_of]
        if unknown:
            raise InputError(f"{field}: expected the classes of data.root, got {unknown[0]!r}. Remove it.")
        return known or names, [number_of[str(value)] for value in found]
    if column in named:
        names = tuple(table.features[column].names)
    else:
        names = known or tuple(str(number) for number in range(int(found.max(initial=0)) + 1))
    if known is not None and names != known:
        raise InputError(
            f"{field}: expected the {len(known)} classes of data.root, got {len(names)} that are not the "
            "same. Write both with the same class names."
        )
    wrong = np.flatnonzero((found < 0) | (found >= len(names)))
    if len(wrong):
        raise InputError(
            f"{field}: expected classes from 0 to {len(names) - 1} in column {column}, got "
            f"{found[wrong[0]]} in row {wrong[0]}. Remove rows without a class, or set data.label_column."
        )
    return names, found.tolist()
