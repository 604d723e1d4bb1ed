"""Looking must leave no trace: everything that a forward and backward pass can move is put back."""

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def preserve_module(module: nn.Module) -> Iterator[None]:
    """Put a module and the random generators back as they were, also after an exception.

    Restored: buffers (running statistics), training mode and other attributes of every submodule, `requires_grad`,
    hooks, and the generators of Python, NumPy, the CPU and every CUDA device. `.grad` is never touched, because
    gradients are asked for by `torch.autograd.grad`. What a forward pass changes outside the module's attributes, or
    deep inside an attribute, stays changed.

    >>> net = nn.BatchNorm1d(2)
    >>> with preserve_module(net):
    ...     _ = net(torch.ones(3, 2))
    >>> net.running_mean.tolist(), int(net.num_batches_tracked)
    ([0.0, 0.0], 0)
    """
    attributes = [
        (vars(m), _copy_attributes(vars(m))) for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers() if not is_lazy(buffer)]
    learns = [(p, p.requires_grad) for p in module.parameters() if not is_lazy(p)]
    with _preserve_generators():
        try:
            yield
        finally:
            for now, before in attributes:
                _restore_attributes(now, before)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for p, learned in learns:
                p.requires_grad_(learned)


SavedAttributes: TypeAlias = list[tuple[Any, Any, Any]]  # key, value, what a container held

# The registries of a module (parameters, buffers, hooks, children) change in place, and handles point to them: the
# container itself stays, its contents come back.
_CONTAINERS = {dict, OrderedDict, set, list}


def _copy_attributes(attributes: dict[str, Any]) -> SavedAttributes:
    return [(k, v, v.copy() if type(v) in _CONTAINERS else None) for k, v in attributes.items()]


def _restore_attributes(attributes: dict[str, Any], saved: SavedAttributes) -> None:
    attributes.clear()
    for key, value, contents in saved:
        if contents is not None:
            value.clear()
            value.extend(contents) if isinstance(value, list) else value.update(contents)
        attributes[key] = value


@contextmanager
def _preserve_generators() -> Iterator[None]:
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 (a user's module may draw from the legacy generator)
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Compute with float64 copies of a module's parameters and buffers; the tensors themselves come back untouched."""
    parameters = [(p, p.data) for p in module.parameters() if p.is_floating_point()]
    buffers = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]
    try:
        for p, data in parameters:
            p.data = data.double()
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer.double()
        yield
    finally:
        for p, data in parameters:
            p.data = data
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer


@contextmanager
def eager_with_gradients() -> Iterator[None]:
    """Give gradients whatever the caller's mode, no fused path of attention (it hides layers), no compilation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with torch.inference_mode(False), torch.enable_grad(), eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def count_unused_norms(module: nn.Module) -> int:
    """Count the batch norms that would use statistics which no batch has changed yet.

    >>> count_unused_norms(nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()).eval())
    1
    """
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training)
    return sum(
        m.running_mean is not None
        and m.running_var is not None
        and not bool(m.running_mean.any())
        and bool((m.running_var == 1).all())
        for m in norms
    )
