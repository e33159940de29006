"""What the blocks of a ConvNeXt V2 have in GRN's place, as the names of its weights tell."""

import re
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from fcmae.config import GATINGS, Gating
from fcmae.models import require_name

_GATE = re.compile(r"encoder\.stages\.\d+\.blocks\.\d+\.(?:(gamma)|mlp\.(?!fc\d)(\w+)\..+)")


def gate_of(name: str) -> str | None:
    """The gate that a weight of ours belongs to, as `gating` calls it; None: to none."""
    found = _GATE.fullmatch(name)
    return None if found is None else "layer_scale" if found[1] else found[2]


def gating_of(weights: Mapping[str, Tensor]) -> Gating:
    """What blocks have in GRN's place, told by the names of weights under ours.

    Raises:
        InputError: a gate that is not known.
    """
    gates = {gate: None for name in weights if (gate := gate_of(name)) is not None}
    # GRN first: beside it another gate's weights are unexplained, and transfer says so.
    gating = "grn" if "grn" in gates else next(iter(gates), "none")
    require_name("weights", "a gate of the blocks", gating, GATINGS)
    return cast(Gating, gating)


def with_gate_of(classifier: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names without the gate that they have, and with what the classifier's begins with."""
    kept = {name: tensor for name, tensor in weights.items() if gate_of(name) is None}
    begun = {f"encoder.{name}": tensor for name, tensor in classifier.state_dict().items()}
    return kept | {name: tensor for name, tensor in begun.items() if gate_of(name) is not None}
