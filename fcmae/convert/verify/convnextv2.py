"""ConvNeXt V2, sparse and dense: the source and what it was converted to compute the same features."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.convert.formats import Format
from fcmae.convert.formats.convnextv2 import FORMATS
from fcmae.convert.networks.convnextv2 import Architecture
from fcmae.convert.transfer import transfer
from fcmae.convert.verify.differences import StageDifference, differences, filled
from fcmae.masking import random_visible_ids, visible_from_ids
from fcmae.models import ConvNeXtClassifier, ConvNeXtV2Encoder
from sparse_ops import SparseImage, features_of

_MASK_RATIO = 0.6
_BATCH = 2
_EPS = 1e-6  # of every LayerNorm of ConvNeXt V2


@torch.no_grad()
def compare_outputs(
    ours: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
    target: Format,
    architecture: Architecture,
    *,
    seed: int = 0,
) -> list[StageDifference]:
    """Run the source and the target on the same random images and compare them stage by stage.

    All patches visible: our sparse encoder with the source's weights against a dense model with the converted
    ones. That is transformers' own for this format where it is installed, else timm's, for which the
    converted weights are read again by their names. Mask ratio 0.6: our sparse execution against our
    masked-dense one, at the visible sites. Float32, evaluation mode, two images, GRN per image.

    Args:
        ours: The source's weights under our names.
        converted: What is to be written.
        target: The format of `converted`.
        architecture: What both are weights of.
        seed: Of the images and of the mask.
    Returns:
        One entry a comparison and stage. Pass it to check_differences to make a difference an error.
    """
    encoder = filled(architecture.create_encoder, _part(ours, "encoder."))
    assert isinstance(encoder, ConvNeXtV2Encoder)

    generator = torch.Generator().manual_seed(seed)
    channels, height, width = architecture.input_size
    images = torch.randn(_BATCH, channels, height, width, generator=generator)
    grid = (height // encoder.max_stride, width // encoder.max_stride)
    everything = torch.ones(_BATCH, *grid, dtype=torch.bool)
    ids = random_visible_ids(_BATCH, grid, mask_ratio=_MASK_RATIO, generator=generator)
    visible = visible_from_ids(ids, grid)

    stages = [stage.densify() for stage in _sparse_stages(encoder, images, everything)]
    full = {f"stage {index}": stage for index, stage in enumerate(stages)}
    head = _part(ours, "head.")
    if "fc.weight" in head:
        pooled = stages[-1].mean((1, 2))
        normed = F.layer_norm(pooled, pooled.shape[1:], head["norm.weight"], head["norm.bias"], _EPS)
        full["logits"] = F.linear(normed, head["fc.weight"], head["fc.bias"])
    engine, dense = _dense_outputs(converted, target, architecture, images)
    found = differences(f"all visible, sparse against {engine}", full, dense)
    del stages, full, dense

    sparse = _sparse_stages(encoder, images, visible)
    masked = encoder(images, visible=visible, execution="masked_dense")
    masked_rows = [
        SparseImage.from_dense(features_of(stage), visible_rows.sites).features
        for stage, visible_rows in zip(masked, sparse, strict=True)
    ]
    rows_of = {f"stage {index}": stage.features for index, stage in enumerate(sparse)}
    return [*found, *differences("mask ratio 0.6, sparse against masked dense", rows_of, masked_rows)]


def dense_model(
    converted: Mapping[str, Tensor], target: Format, architecture: Architecture, drop_path: float = 0.0
) -> ConvNeXt | ConvNeXtClassifier:
    """timm's model, or ours where it has none, with weights of any format in it; without a head, a feature
    extractor.
    """
    head = converted.get(target.from_ours("head.fc.weight") or "")
    num_classes = 0 if head is None else len(head)
    shapes = architecture.timm_shapes(num_classes=num_classes)
    weights, _ = transfer(converted, source=target, target=FORMATS["timm"], target_shapes=shapes)
    model = filled(
        lambda: architecture.create_timm(num_classes=num_classes, drop_path_rate=drop_path), weights
    )
    assert isinstance(model, ConvNeXt | ConvNeXtClassifier)
    return model


def _dense_outputs(
    converted: Mapping[str, Tensor], target: Format, architecture: Architecture, images: Tensor
) -> tuple[str, list[Tensor]]:
    """(name of the model, its features [B, H, W, C] by stage, and logits where there is a head)."""
    if target.name == "transformers" and importlib.util.find_spec("transformers") is not None:
        return "transformers", _transformers_outputs(converted, architecture, images)
    model = dense_model(converted, target, architecture)
    if isinstance(model, ConvNeXtClassifier):
        logits = [model(images)] if model.num_classes else []
        return "our dense network", [*model.stage_features(images), *logits]
    outputs, features = _run(model.stem, model.stages, images)
    if model.num_classes:
        outputs.append(model.forward_head(features))
    return "timm" if target.name == "timm" else f"timm from the {target.name} keys", outputs


def _transformers_outputs(
    converted: Mapping[str, Tensor], architecture: Architecture, images: Tensor
) -> list[Tensor]:
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    head = converted.get("classifier.weight")
    config = ConvNextV2Config(**architecture.transformers_options())
    config.num_labels = 0 if head is None else len(head)
    model: Any = filled(lambda: ConvNextV2ForImageClassification(config), converted)
    base = model.convnextv2
    outputs, features = _run(base.embeddings, base.encoder.stages, images)
    if head is not None:
        outputs.append(model.classifier(base.layernorm(features.mean([-2, -1]))))
    return outputs


def _run(stem: nn.Module, stages: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """(features of every stage, [B, H, W, C], and the last one [B, C, H, W])."""
    features = stem(images)
    outputs = []
    for stage in stages:
        features = stage(features)
        outputs.append(features.permute(0, 2, 3, 1))
    return outputs, features


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def _sparse_stages(encoder: ConvNeXtV2Encoder, images: Tensor, visible: Tensor) -> list[SparseImage]:
    stages = encoder(images, visible=visible)
    # Dense features here would compare the dense code with itself.
    assert all(isinstance(stage, SparseImage) for stage in stages)
    return stages
