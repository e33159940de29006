"""MSN's pretraining checkpoint: an encoder under timm's names with a projection head as its `fc`."""

from fcmae.convert.formats.format import Format
from fcmae.convert.formats.vit import timm

NAMES = {theirs: ours for theirs, ours in timm.NAMES.items() if ours.startswith("encoder.")}
DROPPED = {"fc.{path}": "only pretraining has a projection head"}

FORMAT = Format(
    name="msn",
    marks={**timm.MARKS, "fc.fc1.weight": 2},
    names=NAMES,
    dropped=DROPPED,
    note="of a whole checkpoint the target encoder was taken, the one that MSN evaluates",
)
