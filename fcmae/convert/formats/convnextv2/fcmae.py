"""Our pretraining checkpoint: the middle in which all formats meet, so every name stands for itself."""

from fcmae.convert.formats.format import Format

NAMES = {
    "encoder.{path}": "encoder.{path}",
    "decoder.{path}": "decoder.{path}",
    "head.{path}": "head.{path}",
}

FORMAT = Format(name="fcmae", marks={"encoder.stem.0.weight": 4}, names=NAMES)
