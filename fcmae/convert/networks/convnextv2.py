"""Which ConvNeXt V2 a checkpoint holds, from its config or from the shapes of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fcmae.config import Gating, require
from fcmae.convert.networks.decoders import decoder_like
from fcmae.convert.networks.gating import gating_of
from fcmae.convert.networks.network import shapes_of, weight_of
from fcmae.errors import InputError
from fcmae.models import PRESETS, ConvNeXtClassifier, ConvNeXtV2Encoder, create_backbone
from fcmae.models.blocks import LAYER_SCALE_INIT
from fcmae.models.gates import OWN_GATES
from fcmae.models.presets import ConvNeXtV2Preset, require_name

_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\..+")
_PRESETS = {name: preset for name, preset in PRESETS.items() if isinstance(preset, ConvNeXtV2Preset)}
_STAGES = 4  # timm's ConvNeXt has no other number


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A ConvNeXt V2: a name that timm and create_backbone share, and what differs from it.

    Raises:
        InputError: an unknown name, or depths or dims that are not four.
    """

    backbone: str
    in_chans: int = 3
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None: those of `backbone`."""
    dims: tuple[int, ...] | None = None
    """Width of each stage; None: those of `backbone`."""
    stem_stride: int = 4
    kernel_size: int = 7
    gating: Gating = "grn"
    """What the blocks have in GRN's place."""

    def __post_init__(self) -> None:
        require_name("backbone", "a size of ConvNeXt V2", self.backbone, _PRESETS)
        for name, values in (("depths", self.depths), ("dims", self.dims)):
            require(
                values is None or len(values) == _STAGES,
                f"{name}: expected {_STAGES} stages, got {values}. timm's ConvNeXt has no other number.",
            )

    def create_encoder(self, *, drop_path: float = 0.0) -> ConvNeXtV2Encoder:
        """Our encoder of this architecture, with GRN per image.

        Args:
            drop_path: Stochastic depth of the last block, rising linearly.
        """
        encoder = create_backbone(
            self.backbone,
            in_chans=self.in_chans,
            drop_path=drop_path,
            depths=self.depths,
            dims=self.dims,
            stem_stride=self.stem_stride,
            kernel_size=self.kernel_size,
            gating=self.gating,
        )
        assert isinstance(encoder, ConvNeXtV2Encoder)
        return encoder

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image to try the network with; not square: swapped axes show."""
        side = 8 * self.stem_stride
        rows = max(4, self.kernel_size // 2 + 1)  # every tap of a kernel reaches some site of the last stage
        return self.in_chans, rows * side, (rows + 1) * side

    @property
    def has_timm_stem(self) -> bool:
        """Whether timm's `patch_size` alone gives this network.

        With `patch_size=2` timm adds a downsampling to the first stage; from 8 on it dilates the last stages.
        """
        return self.stem_stride != 2 and self.stem_stride < 8

    def timm_options(self) -> dict[str, Any]:
        """Keyword arguments of timm.create_model(backbone, ...) beside the defaults.

        Stems that timm builds differently are not among them: see create_timm.
        """
        options: dict[str, Any] = {}
        if self.in_chans != 3:
            options["in_chans"] = self.in_chans
        if self.depths is not None:
            options["depths"] = self.depths
        if self.dims is not None:
            options["dims"] = self.dims
        if self.stem_stride != 4 and self.has_timm_stem:
            options["patch_size"] = self.stem_stride
        if self.kernel_size != 7:
            options["kernel_sizes"] = self.kernel_size
        if self.gating != "grn":
            options["use_grn"] = False
            options["ls_init_value"] = LAYER_SCALE_INIT if self.gating == "layer_scale" else None
        return options

    def create_timm(self, **options: Any) -> ConvNeXt | ConvNeXtClassifier:
        """The dense timm model of this architecture, with random weights.

        Where timm's `patch_size` means another network, the convolution of the stem is exchanged, so that the
        stages have the strides of our encoder. Where timm lacks the gates of the blocks, it is our own dense
        network.

        Args:
            **options: Further arguments of timm.create_model: num_classes, drop_path_rate, head_init_scale.
        """
        if self.gating in OWN_GATES:
            preset = _PRESETS[self.backbone]
            return ConvNeXtClassifier(
                self.depths or preset.depths,
                self.dims or preset.dims,
                in_chans=self.in_chans,
                stem_stride=self.stem_stride,
                kernel_size=self.kernel_size,
                gating=self.gating,
                **options,
            )
        model = timm.create_model(self.backbone, **self.timm_options(), **options)
        assert isinstance(model, ConvNeXt)
        if not self.has_timm_stem:
            old = model.stem[0]
            assert isinstance(old, nn.Conv2d)
            stride = self.stem_stride
            model.stem[0] = nn.Conv2d(old.in_channels, old.out_channels, stride, stride=stride)
            for info in model.feature_info:
                info["reduction"] = info["reduction"] * stride // 4
        return model

    def transformers_options(self) -> dict[str, Any]:
        """Keyword arguments of transformers.ConvNextV2Config."""
        preset = _PRESETS[self.backbone]
        return {
            "depths": list(self.depths or preset.depths),
            "hidden_sizes": list(self.dims or preset.dims),
            "num_channels": self.in_chans,
            "patch_size": self.stem_stride,
            "layer_norm_eps": 1e-6,  # of the head; its default is 1e-12
        }

    def require_fits(self, target: str) -> None:
        """Raise InputError where the target's library can build no such network."""
        if self.gating != "grn" and target in ("official", "transformers", "mmpretrain"):
            raise InputError(
                f"target: expected blocks with GRN for {target}, got gating {self.gating}. "
                "Use --target timm or fcmae."
            )
        if self.gating in OWN_GATES and target == "timm":
            raise InputError(
                f"target: expected GRN, layer scale or neither for timm, got gating {self.gating}. "
                "Use --target fcmae."
            )
        if self.kernel_size != 7 and target in ("official", "transformers", "mmpretrain"):
            raise InputError(
                f"target: expected 7x7 kernels for {target}, got {self.kernel_size}. "
                "Use --target timm or fcmae."
            )
        if self.stem_stride != 4 and target == "official":
            raise InputError(
                f"target: expected a stem of stride 4 for official, got {self.stem_stride}. "
                "Use --target timm, transformers or mmpretrain."
            )

    def call(self, target: str, out: str, *, num_classes: int) -> str:
        """How a reader makes the model that converted weights at `out` fit, see Network."""
        wide = self.transformers_options()
        classes = f", num_classes={num_classes}" if num_classes else ""
        if target == "transformers":
            labels = {"num_labels": num_classes} if num_classes else {}
            options = ", ".join(f"{name}={value}" for name, value in {**wide, **labels}.items())
            return f"transformers.ConvNextV2Config({options})"
        if target == "mmpretrain":
            return (
                f"dict(type='ConvNeXt', arch=dict(depths={wide['depths']}, channels={wide['hidden_sizes']}), "
                f"in_channels={self.in_chans}, stem_patch_size={self.stem_stride}, use_grn=True, "
                "layer_scale_init_value=0.0)"
            )
        if target == "official":
            return (
                f"ConvNeXtV2(in_chans={self.in_chans}, depths={wide['depths']}, "
                f"dims={wide['hidden_sizes']}{classes})"
            )
        if target == "fcmae":
            return f'fcmae.load_weights(module, "{out}")'
        if not self.has_timm_stem:
            return f'fcmae.convert.open_source("{out}").architecture().create_timm({classes[2:]})'
        options = "".join(f", {name}={value}" for name, value in self.timm_options().items())
        return f'timm.create_model("{self.backbone}"{options}{classes})'

    def timm_shapes(self, *, num_classes: int) -> dict[str, torch.Size]:
        """Name -> shape of the timm model's state dict; nothing is allocated."""
        with torch.device("meta"):
            return shapes_of({"": self.create_timm(num_classes=num_classes)})

    def our_shapes(self, *, num_classes: int, decoder: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Our name -> shape of encoder, decoder and head; nothing is allocated.

        Args:
            num_classes: Outputs of the head; 0: no head.
            decoder: The decoder's weights `decoder.*`, whose width and depth are not the encoder's; empty:
                no decoder.
        """
        with torch.device("meta"):
            encoder = self.create_encoder()
            parts: dict[str, nn.Module] = {"encoder": encoder}
            if decoder:
                parts["decoder"] = decoder_like(decoder, encoder)
            if num_classes:
                parts["head.norm"] = nn.LayerNorm(encoder.dims[-1])
                parts["head.fc"] = nn.Linear(encoder.dims[-1], num_classes)
        return shapes_of(parts)


def from_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Architecture:
    """The architecture that a pretraining checkpoint's config declares; the weights add nothing to it.

    Raises:
        InputError: the config lacks the fields, or timm has no such network.
    """
    try:
        model, in_chans = config["model"], config["data"]["in_chans"]
        backbone, stem_stride = model["backbone"], model["stem_stride"]
        depths, dims = model["depths"], model["dims"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"checkpoint: expected a config with model and data fields, got none for {error}. "
            "Use a checkpoint that fcmae pretrain wrote."
        ) from error
    return Architecture(
        backbone=backbone,
        in_chans=in_chans,
        depths=None if depths is None else tuple(depths),
        dims=None if dims is None else tuple(dims),
        stem_stride=stem_stride or 4,
        gating=gating_of(weights),
    )


def from_shapes(weights: Mapping[str, Tensor]) -> Architecture:
    """The architecture that weights under our names (`encoder.*`) have.

    Sizes that are no preset get the name of a preset with the same kind of MLP (timm's atto to nano store 1x1
    convolutions), and their own depths and dims.

    Raises:
        InputError: a weight that tells a size is missing, or there are not four stages.
    """
    blocks = {(int(found[1]), int(found[2])) for key in weights if (found := _BLOCK.fullmatch(key))}
    stages = sorted({stage for stage, _ in blocks})
    if stages != list(range(_STAGES)):
        raise InputError(
            f"weights: expected blocks in stages 0 to 3, got stages {stages}. Give weights of ConvNeXt V2."
        )
    depths = tuple(sum(stage == wanted for stage, _ in blocks) for wanted in stages)
    kernels = [weight_of(weights, f"encoder.stages.{stage}.blocks.0.conv_dw.weight", 4) for stage in stages]
    dims = tuple(kernel.shape[0] for kernel in kernels)
    stem = weight_of(weights, "encoder.stem.0.weight", 4)
    fc1 = weight_of(weights, "encoder.stages.0.blocks.0.mlp.fc1.weight", 2, 4)
    same = [name for name, preset in _PRESETS.items() if (preset.depths, preset.dims) == (depths, dims)]
    return Architecture(
        backbone=same[0] if same else "convnextv2_atto" if fc1.ndim == 4 else "convnextv2_tiny",
        in_chans=stem.shape[1],
        depths=None if same else depths,
        dims=None if same else dims,
        stem_stride=stem.shape[3],
        kernel_size=kernels[0].shape[3],
        gating=gating_of(weights),
    )
