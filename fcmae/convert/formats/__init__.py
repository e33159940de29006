"""One module a weight format: a literal table of names, and a function that lays a tensor out.

Formats meet in the middle: each table maps its names to those of our pretraining checkpoint (`encoder.*`,
`decoder.*`, and `head.*` for a classifier), so a new format is one module and one entry in `FORMATS`.
"""

from fcmae.convert.formats import fcmae, timm
from fcmae.convert.formats.format import Format

FORMATS: dict[str, Format] = {"fcmae": fcmae.FORMAT, "timm": timm.FORMAT}

__all__ = ["FORMATS", "Format"]
