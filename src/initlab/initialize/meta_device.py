"""Modules on the meta device, which have shapes and no values: allocate memory, and recompute their buffers."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.inspection import NamedModule
from initlab.inspection.torch_internals import RunningNorm, own_buffers, own_parameters

RESET_METHODS = ("reset_buffers", "reset_parameters", "_reset_parameters", "init_weights", "init_buffers")
"""Names of the method by which modules compute their own buffers, in the order in which they are tried."""


def has_meta_tensors(modules: Sequence[NamedModule]) -> bool:
    """Return whether some parameter or buffer of these modules is on the meta device.

    >>> from initlab.inspection import list_modules
    >>> has_meta_tensors(list_modules(nn.Linear(1, 1, device="meta"))), has_meta_tensors(list_modules(nn.Linear(1, 1)))
    (True, False)
    """
    for _, part in modules:
        for tensor in (*own_parameters(part).values(), *own_buffers(part).values()):
            if tensor is not None and tensor.is_meta:
                return True
    return False


@contextmanager
def materialize(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Give every meta parameter and buffer of `module` memory on `device`; restore them if the block raises.

    Parameters come uninitialized, tied ones stay tied. A buffer must be computed by the module's own reset.

    Args:
        module: the module, changed in place.
        device: where the memory is.

    Raises:
        UserError: a buffer that no reset computes, or a sharded parameter, which its own to_empty must allocate.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for part in module.modules():
        saved += [(store, dict(store)) for store in (own_parameters(part), own_buffers(part))]
    try:
        allocated: dict[int, Tensor] = {}
        buffers = {}
        for name, part in module.named_modules():
            _allocate(name, own_parameters(part), device, allocated)
            buffers[name, part] = _allocate(name, own_buffers(part), device, allocated)
        for (name, part), empty in buffers.items():
            if empty:
                _compute_buffers(name, part, empty)
        yield
    except BaseException:
        for store, before in saved:
            store.clear()
            store.update(before)
        raise


def _allocate(name: str, store: dict[str, Any], device: torch.device, allocated: dict[int, Tensor]) -> list[str]:
    names = [own for own, tensor in store.items() if tensor is not None and tensor.is_meta]
    for own in names:
        tensor = store[own]
        if hasattr(tensor, "full_tensor"):
            raise UserError(
                f"{name}.{own} is sharded and on the meta device: call module.to_empty(device=…) first, "
                "it keeps the shards where they belong."
            )
        if id(tensor) not in allocated:
            empty = torch.empty_like(tensor, device=device)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
                vars(empty).update(vars(tensor))
            allocated[id(tensor)] = empty
        store[own] = allocated[id(tensor)]
    return names


def _compute_buffers(name: str, part: nn.Module, empty: list[str]) -> None:
    if isinstance(part, RunningNorm):
        part.reset_running_stats()
        return
    methods = (getattr(part, name, None) for name in RESET_METHODS)
    reset = next((method for method in methods if _needs_no_arguments(method)), None)
    buffers, parameters = own_buffers(part), dict(own_parameters(part))
    # A reset that computes a buffer gives the same values whatever the buffer held before.
    results: list[dict[str, Tensor]] = []
    for filling in (0, 1):
        for own in empty:
            buffers[own].fill_(filling)  # type: ignore[union-attr]
        if reset is not None:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                reset()
        results.append({own: buffers[own].clone() for own in empty})  # type: ignore[union-attr]
    own_parameters(part).update(parameters)
    missing = [own for own in empty if not torch.equal(results[0][own], results[1][own])]
    if missing:
        kind = type(part).__name__
        raise UserError(
            f"{name + '.' if name else ''}{missing[0]} is a buffer on the meta device and {kind} has no reset that "
            f"computes it: build the module with its buffers on a device, or give {kind} a reset_parameters()."
        )


def _needs_no_arguments(method: Any) -> bool:
    if not callable(method):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(method).parameters.values()
    return all(p.default is not p.empty or p.kind in variadic for p in parameters)
