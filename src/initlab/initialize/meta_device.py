"""Modules on the meta device, which have shapes and no values: given memory, and their buffers made again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.inspection import NamedModule

RESET_METHODS = ("reset_buffers", "reset_parameters", "_reset_parameters", "init_weights", "init_buffers")
"""What modules call the method that computes their own buffers, in the order in which they are tried."""


def has_meta_tensors(parts: Sequence[NamedModule]) -> bool:
    """Return whether some parameter or buffer of a module is on the meta device; `parts`: what it is made of.

    >>> from initlab.inspection import list_modules
    >>> has_meta_tensors(modules_of(nn.Linear(1, 1, device="meta"))), has_meta_tensors(modules_of(nn.Linear(1, 1)))
    (True, False)
    """
    for _, part in parts:
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and tensor.is_meta:
                return True
    return False


@contextmanager
def materialize(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Give every meta parameter and buffer of `module` memory on `device`; take it back if the block raises.

    Parameters come uninitialized, ties stay ties. A buffer must be computed by the module's own reset.

    Raises:
        UserError: a buffer that no reset computes, or a sharded parameter, which its own to_empty must place.
    """
    kept = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    try:
        _allocate(module, device)
        for name, part in module.named_modules():
            _reset_meta_buffers(name, part, kept)
        yield
    except BaseException:
        for part, parameters, buffers in kept:
            part._parameters.clear()
            part._parameters.update(parameters)
            part._buffers.clear()
            part._buffers.update(buffers)
        raise


def _allocate(module: nn.Module, device: torch.device) -> None:
    placed: dict[int, Tensor] = {}
    for name, part in module.named_modules():
        for store in (part._parameters, part._buffers):
            for own, tensor in store.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if hasattr(tensor, "full_tensor"):
                    raise UserError(
                        f"{name}.{own} is sharded and on the meta device: call module.to_empty(device=…) first, "
                        "it keeps the shards where they belong."
                    )
                if id(tensor) not in placed:
                    placed[id(tensor)] = _allocate_like(tensor, device)
                store[own] = placed[id(tensor)]


def _allocate_like(tensor: Tensor, device: torch.device) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.empty_like(tensor, device=device)
    found = nn.Parameter(torch.empty_like(tensor, device=device), tensor.requires_grad)
    found.__dict__.update(tensor.__dict__)
    return found


def _reset_meta_buffers(name: str, part: nn.Module, kept: list[tuple[nn.Module, dict, dict]]) -> None:
    before = next(buffers for module, _, buffers in kept if module is part)
    empty = [own for own, tensor in before.items() if tensor is not None and tensor.is_meta]
    if not empty:
        return
    if isinstance(part, nn.modules.batchnorm._NormBase):
        part.reset_running_stats()
        return
    reset = next((found for each in RESET_METHODS if _needs_no_arguments(found := getattr(part, each, None))), None)
    parameters = {own: tensor for own, tensor in part._parameters.items() if tensor is not None}
    # What a reset computes does not depend on what was there before.
    seen = []
    for filling in (0, 1):
        for own in empty:
            part._buffers[own].fill_(filling)  # type: ignore[union-attr]
        if reset is not None:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                reset()
        seen.append({own: part._buffers[own].clone() for own in empty})  # type: ignore[union-attr]
    part._parameters.update(parameters)
    lost = [own for own in empty if not torch.equal(seen[0][own], seen[1][own])]
    if lost:
        what = type(part).__name__
        raise UserError(
            f"{name + '.' if name else ''}{lost[0]} is a buffer on the meta device and {what} has no reset that "
            f"computes it: build the module with its buffers on a device, or give {what} a reset_parameters()."
        )


def _needs_no_arguments(found: Any) -> bool:
    if not callable(found):
        return False
    needed = [p for p in signature(found).parameters.values() if p.default is p.empty and p.kind not in _VARIADIC]
    return not needed


_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
