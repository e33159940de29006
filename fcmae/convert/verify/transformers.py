"""ViT and ConvMAE: the source and what it was converted to compute the same features."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.convert.formats import Format
from fcmae.convert.formats.vit import FORMATS
from fcmae.convert.networks.convmae import ConvMAEArchitecture
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.convert.transfer import transfer
from fcmae.convert.verify.differences import StageDifference, differences, filled
from fcmae.masking import random_visible_ids, visible_from_ids
from fcmae.models import ConvMAEEncoder, ViTEncoder
from sparse_ops import ActiveSites, Image, SparseImage, features_of

_MASK_RATIO = 0.6
_BATCH = 2


@torch.no_grad()
def compare_vit(
    ours: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
    target: Format,
    architecture: ViTArchitecture,
    *,
    seed: int = 0,
) -> list[StageDifference]:
    """Our encoder with the source's weights against timm's with the converted ones.

    All patches visible: against timm, for which other formats are read again by their names, or for theirs
    against transformers' own ViT where it is installed. Mask ratio 0.6: our tokens of the visible patches
    against timm's blocks over the same ones of its embedded patches. Float32, evaluation mode.

    Args:
        ours: The source's weights under our names.
        converted: What is to be written.
        target: The format of `converted`.
        architecture: What both are weights of.
        seed: Of the images and of the mask.
    Raises:
        InputError: the number of heads is not known.
    """
    dense = dense_vit(converted, target, architecture)
    encoder = _encoder(architecture, ours)
    assert isinstance(encoder, ViTEncoder)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(_BATCH, *architecture.input_size, generator=generator)
    found = {"tokens": encoder.forward_tokens(images)}
    if dense.num_classes:
        found["logits"] = _logits(found["tokens"], ours)
    engine = "timm" if target.name == "timm" else f"timm from the {target.name} keys"
    if target.name == "transformers" and importlib.util.find_spec("transformers") is not None:
        whole, expected = "transformers", _transformers_outputs(converted, target, architecture, images)
    else:
        theirs = dense.forward_features(images)
        whole, expected = engine, [theirs, dense.forward_head(theirs)]
    ids = random_visible_ids(_BATCH, architecture.grid, mask_ratio=_MASK_RATIO, generator=generator)
    sites = ActiveSites.from_visible_ids(ids, grid=architecture.grid, tile=1)
    kept = torch.cat([torch.zeros_like(ids[:, :1]), ids + 1], dim=1)
    embedded = dense._pos_embed(dense.patch_embed(images))
    gathered = embedded.gather(1, kept.unsqueeze(-1).expand(-1, -1, embedded.shape[-1]))
    return [
        *differences(f"all visible, ours against {whole}", found, expected[: len(found)]),
        *differences(
            f"mask ratio 0.6, visible tokens against {engine}",
            {"tokens": encoder.forward_tokens(images, sites=sites)},
            [dense.norm(dense.blocks(gathered))],
        ),
    ]


def dense_vit(
    converted: Mapping[str, Tensor], target: Format, architecture: ViTArchitecture, drop_path: float = 0.0
) -> VisionTransformer:
    """timm's model with the weights of any format in it; a feature extractor where they have no head.

    Raises:
        InputError: the number of heads is not known.
    """
    architecture.heads()
    weights = target.join(converted)
    head = weights.get(target.from_ours("head.fc.weight") or "")
    num_classes = 0 if head is None else len(head)
    shapes = architecture.timm_shapes(num_classes=num_classes)
    placed, _ = transfer(weights, source=target, target=FORMATS["timm"], target_shapes=shapes)
    model = filled(
        lambda: architecture.create_timm(num_classes=num_classes, drop_path_rate=drop_path), placed
    )
    assert isinstance(model, VisionTransformer)
    return model


def _transformers_outputs(
    converted: Mapping[str, Tensor], target: Format, architecture: ViTArchitecture, images: Tensor
) -> list[Tensor]:
    """Tokens after the last norm, and logits, which mean nothing where there is no head."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**architecture.transformers_options())
    head = converted.get("classifier.weight")
    config.num_labels = 0 if head is None else len(head)
    with torch.device("meta"):
        names = target.join(ViTForImageClassification(config).state_dict())
    # Its names in memory need not be those of its files.
    placed, _ = transfer(
        target.join(converted),
        source=target,
        target=target,
        target_shapes={name: tensor.shape for name, tensor in names.items()},
    )
    model: Any = filled(lambda: ViTForImageClassification(config), target.split(placed))
    return [model.vit(images).last_hidden_state, model(images).logits]


@torch.no_grad()
def compare_convmae(
    ours: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
    target: Format,
    architecture: ConvMAEArchitecture,
    *,
    seed: int = 0,
) -> list[StageDifference]:
    """Our encoder with the source's weights against itself with the converted ones, read by their names.

    All patches visible: as rows of sites against whole images; mask ratio 0.6: rows against masked dense
    maps. Float32, evaluation mode.

    Args:
        ours: The source's weights under our names.
        converted: What is to be written.
        target: The format of `converted`.
        architecture: What both are weights of.
        seed: Of the images and of the mask.
    Raises:
        InputError: the number of heads is not known.
    """
    architecture.heads()
    encoder = _encoder(architecture, ours)
    names = {target.to_ours(key): key for key in converted}
    back = {
        name: target.import_tensor(name, converted[key]) for name, key in names.items() if name is not None
    }
    dense = _encoder(architecture, back)
    assert isinstance(encoder, ConvMAEEncoder) and isinstance(dense, ConvMAEEncoder)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(_BATCH, *architecture.input_size, generator=generator)
    everything = torch.ones(_BATCH, *architecture.grid, dtype=torch.bool)
    ids = random_visible_ids(_BATCH, architecture.grid, mask_ratio=_MASK_RATIO, generator=generator)
    visible = visible_from_ids(ids, architecture.grid)
    sparse, masked = (
        encoder(images, visible=visible),
        dense(images, visible=visible, execution="masked_dense"),
    )
    return [
        *differences(
            f"all visible, sparse against dense from the {target.name} keys",
            _named([_rows(stage).densify() for stage in encoder(images, visible=everything)]),
            dense(images),
        ),
        *differences(
            "mask ratio 0.6, sparse against masked dense",
            _named([_rows(stage).features for stage in sparse]),
            [_rows_like(stage, rows) for stage, rows in zip(masked, sparse, strict=True)],
        ),
    ]


def _encoder(architecture: ViTArchitecture | ConvMAEArchitecture, ours: Mapping[str, Tensor]) -> nn.Module:
    """Our encoder with these weights, its position embeddings exactly those of the file."""
    weights = {
        name.removeprefix("encoder."): tensor for name, tensor in ours.items() if name.startswith("encoder.")
    }
    encoder = filled(
        architecture.create_encoder, {name: t for name, t in weights.items() if name != "pos_embed"}
    )
    assert isinstance(encoder, ViTEncoder | ConvMAEEncoder)
    positions = weights["pos_embed"].float()
    encoder.pos_embed = nn.Parameter(positions) if isinstance(encoder, ViTEncoder) else positions
    return encoder


def _logits(tokens: Tensor, ours: Mapping[str, Tensor]) -> Tensor:
    head = {name: tensor.float() for name, tensor in ours.items() if name.startswith("head.")}
    pooled = tokens[:, 0]
    if "head.norm.weight" in head:
        average = tokens[:, 1:].mean(1)
        pooled = F.layer_norm(
            average, average.shape[1:], head["head.norm.weight"], head["head.norm.bias"], 1e-6
        )
    return F.linear(pooled, head["head.fc.weight"], head["head.fc.bias"])


def _named(stages: list[Tensor]) -> dict[str, Tensor]:
    return {f"stage {index}": stage for index, stage in enumerate(stages)}


def _rows(stage: Image) -> SparseImage:
    # Dense features here would compare the dense code with itself.
    assert isinstance(stage, SparseImage)
    return stage


def _rows_like(stage: Image, rows: SparseImage) -> Tensor:
    if isinstance(stage, SparseImage):
        return stage.features
    return SparseImage.from_dense(features_of(stage), rows.sites).features
