"""What modules of any network read, as features of sites."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from fcmae.errors import InputError
from fcmae.models.blocks import GatedMlp
from fcmae.models.convmae import PointwiseConv2d


@contextmanager
def observed(
    model: nn.Module, modules: str, receive: Callable[[str, Tensor], None], *, prefix_tokens: int = 0
) -> Iterator[None]:
    """While the network runs inside, `receive(name, features)` gets what each matching module reads.

    The features are [B, H, W, C], or of tokens [B, L, C]; to be used at once, since nothing else keeps them.
    The network is in evaluation mode inside; its mode is put back. Our ConvNeXt V2 runs an MLP as one
    operation: what its `mlp.fc2` reads is computed once more from what `mlp` reads.

    Args:
        model: Any network.
        modules: Regular expression that whole names of modules match.
        receive: Called in the order in which the modules run.
        prefix_tokens: Tokens before the patches in [B, tokens, C], which are no sites: a class token.
    Raises:
        InputError: no module matches, or one of them has not run at the end, or reads no features
            [B, H, W, C], [B, C, H, W] or [B, tokens, C].
    """
    chosen = {name: module for name, module in model.named_modules() if re.fullmatch(modules, name)}
    if not chosen:
        known = ", ".join(name for name, _ in list(model.named_modules())[1:40])
        raise InputError(f"modules: expected names that match {modules}, got {known} ... Set --modules.")
    ran: set[str] = set()

    def hook(name: str) -> Any:
        def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            ran.add(name)
            read = inputs[0] if inputs else None
            if isinstance(module, GatedMlp) and module is not chosen[name] and isinstance(read, Tensor):
                module, read = chosen[name], module.hidden(read)
            receive(name, _sites_and_channels(module, read, name, prefix_tokens))

        return take

    was_training = model.training
    handles = [_that_runs(model, name).register_forward_pre_hook(hook(name)) for name in chosen]
    model.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    silent = [name for name in chosen if name not in ran]
    if silent:
        raise InputError(
            f"modules: expected modules that run, got {silent[0]} and {len(silent) - 1} more that do not. "
            "Choose others with --modules."
        )


def _that_runs(model: nn.Module, name: str) -> nn.Module:
    """The module `name`, or the MLP that uses its weights without calling it."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return parent if isinstance(parent, GatedMlp) and name.endswith(".fc2") else model.get_submodule(name)


def _sites_and_channels(module: nn.Module, features: object, name: str, prefix_tokens: int) -> Tensor:
    """[B, H, W, C] or [B, L, C], without the tokens that are no sites."""
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"modules: expected one that reads features [B, H, W, C], [B, C, H, W] or [B, tokens, C], got "
            f"{got} at {name}. Choose others with --modules."
        )
    if features.ndim == 3:
        return features[:, prefix_tokens:]
    return features if _channels_last(module) else features.permute(0, 2, 3, 1)


def _channels_last(module: nn.Module) -> bool:
    """How a module reads maps of 4 dimensions."""
    if isinstance(module, nn.Linear | PointwiseConv2d):
        return True
    if isinstance(module, nn.LayerNorm):
        return not isinstance(module, LayerNorm2d)
    return getattr(module, "channel_dim", 1) == -1  # timm's GRN tells it
