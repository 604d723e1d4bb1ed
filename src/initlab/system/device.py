"""The device that a configuration names."""

import torch

from initlab.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return a device by name; `auto` is cuda, else mps, else cpu.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name} names no device: use device=auto, cpu, cuda, cuda:1 or mps.") from error
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device={name} is not available here ({reason}): use device=cpu.") from error
    return device
