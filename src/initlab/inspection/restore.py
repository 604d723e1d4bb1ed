"""Leave a module and the random state as they were: everything that a forward or backward pass can change."""

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initlab.inspection.torch_internals import BatchNorm, own_buffers, without_compilation


@contextmanager
def preserve_module(module: nn.Module) -> Iterator[None]:
    """Restore a module and the random generators after the block, also after an exception.

    Restored: buffers (running statistics), training mode and other attributes of every submodule, `requires_grad`,
    hooks, and the generators of Python, NumPy, the CPU and every CUDA device. `.grad` is not restored, because
    gradients are computed by `torch.autograd.grad`. Not restored: parameters' values, what a forward pass changes
    outside the module's attributes, or deep inside an attribute.

    >>> net = nn.BatchNorm1d(2)
    >>> with preserve_module(net):
    ...     _ = net(torch.ones(3, 2))
    >>> net.running_mean.tolist(), int(net.num_batches_tracked)
    ([0.0, 0.0], 0)
    """
    attributes = [(vars(m), _copy_attributes(vars(m))) for m in module.modules() if not _is_script(m)]
    with preserve_generators(), preserve_values(*module.buffers()), preserve_modes(module):
        try:
            yield
        finally:
            for current, saved in attributes:
                _restore_attributes(current, saved)


@contextmanager
def preserve_modes(module: nn.Module) -> Iterator[None]:
    """Restore the training mode of every submodule and `requires_grad` of every parameter after the block."""
    modes = [(part, part.training) for part in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters() if not is_lazy(p)]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def preserve_values(*tensors: Tensor, only_on_error: bool = False) -> Iterator[None]:
    """Restore the values of tensors after the block; `only_on_error`: only where it raises.

    >>> x = torch.zeros(2)
    >>> with preserve_values(x):
    ...     _ = x.add_(1)
    >>> x.tolist()
    [0.0, 0.0]
    """
    before = [(tensor.detach(), tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor)]
    restore = True
    try:
        yield
        restore = not only_on_error
    finally:
        if restore:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)


SavedAttributes: TypeAlias = list[tuple[Any, Any, Any]]  # key, value, a container's contents

# The registries of a module (parameters, buffers, hooks, children) change in place, and handles point to them: the
# container itself stays, and its contents are restored.
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


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Restore the global random state of Python, NumPy, the CPU and every CUDA device after the block."""
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
    """Compute with float64 copies of a module's parameters and buffers inside the block; the tensors do not change."""
    parameters = [(p, p.data) for p in module.parameters() if p.is_floating_point()]
    buffers = [
        (own_buffers(owner), name, buffer)
        for owner in module.modules()
        for name, buffer in own_buffers(owner).items()
        if buffer is not None and buffer.is_floating_point()
    ]
    try:
        for p, data in parameters:
            p.data = data.double()
        for own, name, buffer in buffers:
            own[name] = buffer.double()
        yield
    finally:
        for p, data in parameters:
            p.data = data
        for own, name, buffer in buffers:
            own[name] = buffer


@contextmanager
def eager_with_gradients() -> Iterator[None]:
    """Enable gradients in any mode of the caller; disable compilation and attention's fused path, which hide layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for block in (torch.inference_mode(False), torch.enable_grad(), without_compilation()):
            stack.enter_context(block)
        yield


def count_unused_norms(module: nn.Module) -> int:
    """Count the batch norms in evaluation mode whose statistics no batch has changed.

    >>> count_unused_norms(nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()).eval())
    1
    """
    norms = (m for m in module.modules() if isinstance(m, BatchNorm) and not m.training)
    return sum(
        m.running_mean is not None
        and m.running_var is not None
        and not bool(m.running_mean.any())
        and bool((m.running_var == 1).all())
        for m in norms
    )
