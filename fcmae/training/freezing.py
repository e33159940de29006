"""Partial fine-tuning: the last blocks learn, and everything before them stays as it was."""

import re
from functools import partial

from torch import nn

from fcmae.errors import InputError
from fcmae.training.engine.optim import layer_id

# The MLP of a block, the norm before it (ConvNeXt has one norm a block) and a layer scale behind it.
_MLP = re.compile(r"(.*\.)?blocks\d?\.\d+\.(mlp\..+|norm2?\..+|gamma)")


def train_last_blocks(classifier: nn.Module, blocks: float, *, depths: tuple[int, ...]) -> None:
    """Freeze all but the head, with the norm before it, and the last `blocks` residual blocks.

    A downsampling or patch embedding goes with the block after it, as in layer decay. A half is the MLP of a
    block with the norm before it: in ConvNeXt V2 all but the depthwise convolution. 0: the head alone. All
    blocks: nothing is frozen, a ViT's embeddings included.

    Frozen parameters require no gradient: optimisers leave them out, and autograd computes nothing below the
    first that learns. Modules without parameters that learn run as in evaluation, without stochastic depth
    or statistics of the batch, whatever mode the classifier is put into.

    Args:
        classifier: A timm ConvNeXt V2 or ViT, or our ConvMAE.
        blocks: From the head on; a multiple of 0.5.
        depths: Blocks of each stage.
    Raises:
        InputError: the classifier has fewer blocks.
    Paper: He et al. 2021, MAE, section 4.3 and figure 9.
    """
    require_blocks(blocks, depths=depths, field="model.train_last_blocks", what="the classifier")
    total, whole = sum(depths), int(blocks)
    if whole == total:
        return
    first = total - whole + 1
    for name, parameter in classifier.named_parameters():
        layer = layer_id(name, depths=depths, kind="single")
        in_half = blocks > whole and layer == first - 1 and _MLP.fullmatch(name) is not None
        parameter.requires_grad_(layer >= first or in_half)
    for module in classifier.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
            # The instance's own: evaluation puts the mode of the whole classifier back.
            module.train = partial(_stay, module)  # pyright: ignore[reportAttributeAccessIssue]


def require_blocks(blocks: float, *, depths: tuple[int, ...], field: str, what: str) -> None:
    """Raise InputError where more blocks are to be trained than there are."""
    if blocks > sum(depths):
        raise InputError(
            f"{field}: expected at most the {sum(depths)} blocks of {what}, got {blocks:g}. Lower it."
        )


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
