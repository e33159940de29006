"""A feature pyramid with new parts behind it, as training sees it."""

from collections.abc import Callable

from torch import nn

from fcmae.downstream.pyramid import FeaturePyramid
from fcmae.training.engine.optim import LayerDecayType


class PyramidNetwork(nn.Module):
    """What detector and segmenter have in common.

    Args:
        pyramid: The encoder's maps.
    """

    def __init__(self, pyramid: FeaturePyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def layer_scale(self, decay: float, *, kind: LayerDecayType = "single") -> Callable[[str], float]:
        """The factor on the learning rate by a parameter's name: the pyramid's, 1 in the new parts."""
        scale = self.pyramid.layer_scale(decay, kind=kind)

        def scale_of(name: str) -> float:
            part, _, rest = name.partition(".")
            return scale(rest) if part == "pyramid" else 1.0

        return scale_of

    def no_weight_decay(self) -> set[str]:
        """The pyramid's."""
        return {f"pyramid.{name}" for name in self.pyramid.no_weight_decay()}
