"""The optimiser: weight decay, layer-wise decay of the learning rate, and its schedule."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fcmae.config import TrainConfig
from fcmae.config.train import Schedule
from fcmae.errors import InputError
from fcmae.training.engine.sharding import like_parameter

LayerDecayType = Literal["single", "group"]
_GROUPS = 12


def peak_learning_rate(train: TrainConfig, *, devices: int) -> float:
    """`base_lr` scaled to the images of one optimiser step: base_lr * images / 256."""
    return train.base_lr * train.batch_size * train.accumulate * devices / 256


def learning_rate(
    step: int,
    *,
    peak: float,
    minimum: float,
    warmup_steps: int,
    steps: int,
    start: float = 0.0,
    schedule: Schedule = "cosine",
    milestones: tuple[float, ...] = (),
) -> float:
    """The learning rate of optimiser step `step` (counted from 0).

    Linear warm-up from `start` reaches `peak` at step warmup_steps - 1; half a cosine, or a line, falls from
    there to `minimum` at the last step. By "steps" it falls to a tenth at each of `milestones`, shares of
    `steps`, and `minimum` does not count.
    """
    if step < warmup_steps:
        return start + (peak - start) * (step + 1) / warmup_steps
    if schedule == "steps":
        return peak * 0.1 ** sum(step >= share * steps for share in milestones)
    return _fall(step - warmup_steps, steps - warmup_steps, first=peak, last=minimum, schedule=schedule)


def _fall(step: int, steps: int, *, first: float, last: float, schedule: Schedule = "cosine") -> float:
    share = min(1.0, step / max(1, steps - 1))
    left = 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return last + (first - last) * left


def follow_schedules(
    optimizer: torch.optim.Optimizer, train: TrainConfig, *, step: int, devices: int
) -> float:
    """Give every group its learning rate and weight decay for optimiser step `step` (counted from 0).

    Returns:
        The learning rate of groups without a factor.
    """
    steps = round(train.steps * train.schedule_stretch)
    lr = learning_rate(
        step,
        peak=peak_learning_rate(train, devices=devices),
        minimum=train.min_lr,
        warmup_steps=train.warmup_steps,
        steps=steps,
        start=train.start_lr,
        schedule=train.schedule,
        milestones=train.milestones,
    )
    set_learning_rate(optimizer, lr)
    if train.final_weight_decay is not None:
        decay = _fall(step, steps, first=train.weight_decay, last=train.final_weight_decay)
        for group in optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = decay
    return lr


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to kernels and matrices, in pretraining and fine-tuning alike.

    Exempt are 1-D parameters, biases, GRN's scale and shift, the mask token and MSN's prototypes, whatever
    their shape. The original code exempts GRN's parameters in fine-tuning but decays them and the mask token
    in pretraining, since it stores them as [1, C] (ConvNeXt-V2 issue 15).
    """
    exempt = name.endswith((".bias", ".gamma", ".beta", "mask_token", "prototypes")) or ".grn." in name
    return parameter.ndim > 1 and not exempt


def layer_id(name: str, *, depths: tuple[int, ...], kind: LayerDecayType) -> int:
    """The layer of a parameter of a timm ConvNeXt V2, of our ConvMAE or of a timm ViT, from the image on.

    ConvNeXt V2 `single`: a layer a block. The first block shares its layer with the stem, the first block of
    a later stage with the downsampling before it; the head has sum(depths) + 1.
    ConvNeXt V2 `group`: twelve groups made for depths (3, 3, 27, 3). The stem has 0, stages 0 and 1 have 1
    and 2, the blocks of stage 2 go in threes from 3 to 11, stage 3 has 12, the head 13; a downsampling goes
    with the blocks after it.
    ConvMAE `single`: a layer a block, a patch embedding with the first block after it.
    ConvMAE `group`, the original's: the convolution stages and all patch embeddings have 0, the transformer's
    blocks from 1 on a layer each, the norm and the head one more than the last.
    ViT `single`, MAE's: the patch and position embeddings and the class token have 0, the blocks from 1 on a
    layer each, the norm and the head one more than the last.

    Args:
        name: Of the parameter.
        depths: Blocks of each stage, four of ConvNeXt V2, three of ConvMAE or one of a ViT.
        kind: `single` or `group`.
    Raises:
        InputError: the name is not that of a parameter of these, or a ViT's layers are wanted in groups.
    """
    return _LAYER_OF_PART[len(depths)](name.split("."), depths, kind)


def layer_scale(decay: float, *, depths: tuple[int, ...], kind: LayerDecayType) -> Callable[[str], float]:
    """The factor on the learning rate by a parameter's name: decay ** (head's layer - its layer)."""
    if decay == 1.0:
        return lambda name: 1.0
    top = layer_id("head.weight", depths=depths, kind=kind)
    return lambda name: decay ** (top - layer_id(name, depths=depths, kind=kind))


def _convnextv2_layer(part: list[str], depths: tuple[int, ...], kind: LayerDecayType) -> int:
    if part[0] in ("head", "norm_pre"):
        return (sum(depths) if kind == "single" else _GROUPS) + 1
    if part[0] == "stem":
        return 1 if kind == "single" else 0
    if part[0] != "stages":
        raise _foreign("ConvNeXt V2", part)
    stage = int(part[1])
    block = int(part[3]) if part[2] == "blocks" else 0
    if kind == "single":
        return sum(depths[:stage]) + block + 1
    if stage < 2:
        return stage + 1
    return _GROUPS if stage == 3 else min(3 + block // 3, _GROUPS - 1)


def _convmae_layer(part: list[str], depths: tuple[int, ...], kind: LayerDecayType) -> int:
    if part[0] in ("fc_norm", "head"):
        return (sum(depths) if kind == "single" else depths[-1]) + 1
    embedding, block = part[0].startswith("patch_embed"), part[0].startswith("blocks")
    if not embedding and not block:
        raise _foreign("ConvMAE", part)
    last = len(depths)
    stage = min(int(part[0][-1]), last)  # patch_embed4 is a linear layer behind patch_embed3
    place = 1 + (int(part[1]) if block else 0)
    if kind == "single":
        return sum(depths[: stage - 1]) + place
    return place if block and stage == last else 0


def _vit_layer(part: list[str], depths: tuple[int, ...], kind: LayerDecayType) -> int:
    if kind != "single":
        raise InputError(
            f"train.layer_decay_type: expected single for a ViT, got {kind}. "
            "Set --train.layer_decay_type=single."
        )
    if part[0] in ("norm", "fc_norm", "head"):
        return depths[0] + 1
    if part[0] in ("cls_token", "pos_embed", "patch_embed"):
        return 0
    if part[0] != "blocks":
        raise _foreign("ViT", part)
    return int(part[1]) + 1


# By the number of stages, in which the families differ.
_LAYER_OF_PART = {1: _vit_layer, 3: _convmae_layer, 4: _convnextv2_layer}


def _foreign(family: str, part: list[str]) -> InputError:
    return InputError(
        f"train.layer_decay: expected a {family} parameter, got {'.'.join(part)}. Set train.layer_decay to 1."
    )


def parameter_groups(
    model: nn.Module, *, weight_decay: float, lr_scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Groups of equal weight decay and learning-rate factor, for an optimiser.

    Weight decay spares what `decays` does not name, and what the model's own `no_weight_decay` names: of
    timm's ViT the class token and the trained position embeddings, which MAE's fine-tuning spares, too (its
    pretraining decays the class token).

    Args:
        model: Parameters that require no gradient are left out.
        weight_decay: For the parameters that are not spared; 0 for those.
        lr_scale: The factor on the learning rate, from a parameter's name.
    Returns:
        Dictionaries with "params" (pairs of name and parameter), "weight_decay" and "lr_scale".
    """
    own = getattr(model, "no_weight_decay", None)
    spared: Any = own() if callable(own) else ()
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if decays(name, parameter) and name not in spared else 0.0
        scale = lr_scale(name)
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append((name, parameter))
    return list(groups.values())


def build_adamw(
    groups: list[dict[str, Any]], *, betas: tuple[float, float], device: torch.device
) -> torch.optim.AdamW:
    """AdamW over named groups, fused where the device can; its rate is set before each step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=device.type in ("cpu", "cuda", "mps"))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group `value` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The moments and step count of each parameter, by the parameter's name.

    By name, since torch's own numbering follows the groups, which change with weight decay and layer decay.
    """
    return {
        name: dict(optimizer.state[parameter])
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restore what `optimizer_state` returned; rates, decay and betas stay those of the configuration.

    Raises:
        InputError: the saved names are not those of the optimiser's parameters.
    """
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    if set(names) != set(saved):
        differing = sorted(set(names) ^ set(saved))[0]
        raise InputError(
            f"resume: expected the optimiser state of this model, got one that differs at {differing}. "
            "Resume with the configuration of the checkpoint."
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {key: like_parameter(value, parameter) for key, value in saved[name].items()}
        for number, (name, parameter) in enumerate(zip(names, parameters, strict=True))
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
