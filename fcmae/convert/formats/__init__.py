"""One module a weight format: a literal table of names, and the layouts that differ from ours.

Formats meet in the middle: each table maps its names to those of our pretraining checkpoint (`encoder.*`,
`decoder.*`, and `head.*` for a classifier). A family of networks has one folder of them.
"""

from fcmae.convert.formats.format import Format

__all__ = ["Format"]
