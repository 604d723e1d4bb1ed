"""Interfaces that torch does not document, as they are in torch 2.11 to 2.14.

Each has a fallback, named beside it; `tests/test_inspection_torch_internals.py` names what an upgrade takes away.
"""

import operator
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def _public(kind: str) -> tuple[type[nn.Module], ...]:
    return tuple(getattr(nn, f"{kind}{axes}d") for axes in (1, 2, 3))


ConvNd: Any = getattr(nn.modules.conv, "_ConvNd", (*_public("Conv"), *_public("ConvTranspose")))
"""Base class of all convolutions; else the public classes."""

BatchNorm: Any = getattr(nn.modules.batchnorm, "_BatchNorm", (*_public("BatchNorm"), nn.SyncBatchNorm))
"""Base class of batch norms; else the public classes."""

InstanceNorm: Any = getattr(nn.modules.instancenorm, "_InstanceNorm", _public("InstanceNorm"))
"""Base class of instance norms; else the public classes."""

RunningNorm: Any = getattr(nn.modules.batchnorm, "_NormBase", (BatchNorm, InstanceNorm))
"""Base class of norms with running statistics; else both of the above."""

WeightNorm: Any = getattr(parametrizations, "_WeightNorm", ())
"""torch's parametrization g·v/‖v‖; else no class, and it is read as any other parametrization."""

SpectralNorm: Any = getattr(parametrizations, "_SpectralNorm", ())
"""torch's parametrization W/σ(W); else no class, and it is read as any other parametrization."""


def _stored(name: str, read: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    return operator.attrgetter(name) if hasattr(nn.Module(), name) else lambda module: dict(read(module))


own_parameters: Callable[[nn.Module], dict[str, nn.Parameter | None]] = _stored(
    "_parameters", lambda module: module.named_parameters(recurse=False, remove_duplicate=False)
)
"""A module's own parameters by name, without computing parametrized weights; else a copy of the dictionary."""

own_buffers: Callable[[nn.Module], dict[str, Tensor | None]] = _stored(
    "_buffers", lambda module: module.named_buffers(recurse=False, remove_duplicate=False)
)
"""A module's own buffers by name; else a copy of the dictionary."""

own_modules: Callable[[nn.Module], dict[str, nn.Module | None]] = _stored(
    "_modules", lambda module: module.named_children()
)
"""A module's children by name; else a copy of the dictionary, in which a shared child stands once."""

forward_pre_hooks: Callable[[nn.Module], dict[int, Any]] = _stored("_forward_pre_hooks", lambda module: ())
"""A module's forward pre-hooks, where the old weight_norm and spectral_norm stand; else none are found."""

COMPILED_ATTRIBUTE = "_orig_mod"
"""Attribute of torch.compile's wrapper that holds the module, and the part of a name that it adds."""

WRAPPER_NAMES = (COMPILED_ATTRIBUTE, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that the wrappers of torch.compile, FSDP and activation checkpointing add."""


def compiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module inside torch.compile's wrapper, or None where it is not such a wrapper.

    >>> compiled_module(nn.ReLU())
    """
    inner = getattr(module, COMPILED_ATTRIBUTE, None)
    return inner if isinstance(inner, nn.Module) else None


def without_compilation() -> AbstractContextManager[Any]:
    """Run compiled modules eagerly inside the block; torch._dynamo, slow to import, stays unloaded where it is."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
