"""The device that a network is evaluated on."""

import torch

from fcmae.errors import InputError


def find_device(name: str) -> torch.device:
    """The device of that name; `auto`: CUDA where there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"device: expected one of this machine's, got {name}: {reason}") from error
    return device
