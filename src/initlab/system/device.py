"""The device that a configuration names."""

import torch

from initlab.errors import UserError


def pick_device(name: str) -> torch.device:
    """Turn `auto` into cuda, else mps, else cpu; raises UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name} names no device: say device=auto, cpu, cuda, cuda:1 or mps.") from error
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device={name} is not available here ({reason}): say device=cpu.") from error
    return device
