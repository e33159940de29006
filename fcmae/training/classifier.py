"""The dense classifier that is fine-tuned, with pretrained weights where there are some."""

from collections.abc import Mapping

from torch import Tensor, nn

from fcmae.config import ClassifierConfig
from fcmae.convert import Architecture, load_weights, open_source
from fcmae.errors import InputError
from fcmae.models import ConvMAEPreset, find_preset
from fcmae.training.classifier_convmae import build_convmae_classifier


def build_classifier(
    model: ClassifierConfig, weights: str | Mapping[str, Tensor] | None, *, num_classes: int, in_chans: int
) -> tuple[nn.Module, tuple[int, ...]]:
    """timm's `convnextv2_*` or our `convmae_*` with a new head, and the number of blocks of each stage.

    The head is timm's (truncated normal of std 0.02, no bias) times `head_init_scale`: the original's std
    2e-5 at 0.001. Sizes that are no preset's, such as a pretraining run's own depths, are taken from the
    weights.

    Args:
        model: Backbone, head and regularisation.
        weights: A checkpoint, a run folder, converted weights or a state dict, whose head is not used; None:
            random.
        num_classes: Outputs of the head.
        in_chans: Channels of the images.
    Returns:
        (classifier, depths).
    Raises:
        InputError: unknown backbone, weights that cannot be read, or weights of another backbone or other
            images.
    """
    preset = find_preset(model.backbone)
    if isinstance(preset, ConvMAEPreset):
        return build_convmae_classifier(model, preset, weights, num_classes=num_classes, in_chans=in_chans)
    if model.num_heads is not None:
        raise InputError(
            f"model.num_heads: expected none for {model.backbone}, got {model.num_heads}. Leave it out."
        )
    architecture = Architecture(backbone=model.backbone, in_chans=in_chans)
    source = None if weights is None else open_source(weights)
    if source is not None:
        architecture = source.architecture()
        # Without a config, weights of own sizes cannot tell which preset they were derived from.
        is_named = source.config is not None or architecture.depths is None
        if is_named and architecture.backbone != model.backbone:
            raise InputError(
                f"model.backbone: expected {architecture.backbone}, that of the weights, "
                f"got {model.backbone}. Set --model.backbone={architecture.backbone}."
            )
        if architecture.in_chans != in_chans:
            raise InputError(
                f"data.in_chans: expected that of the weights, {architecture.in_chans}, got {in_chans}. "
                f"Set --data.in_chans={architecture.in_chans}."
            )
    classifier = architecture.create_timm(
        num_classes=num_classes, drop_path_rate=model.drop_path, head_init_scale=model.head_init_scale
    )
    if source is not None:
        load_weights(classifier, source.without_head(), source=source.format.name)
    return classifier, architecture.depths or find_preset(architecture.backbone).depths
