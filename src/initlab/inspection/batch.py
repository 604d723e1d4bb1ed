"""What a module is called with: arguments, the number of inputs, copies that may be changed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from initlab.errors import UserError

Batch: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]


def flatten_tensors(batch: object) -> list[Tensor]:
    """Return the tensors of a batch, or of an output, in order: nested tuples, lists, mappings and data classes.

    >>> [t.item() for t in flatten_tensors({"a": torch.tensor(1), "b": (None, torch.tensor(2))})]
    [1, 2]
    """
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, dict):
        return [t for value in batch.values() for t in flatten_tensors(value)]
    if isinstance(batch, (tuple, list)):
        return [t for value in batch for t in flatten_tensors(value)]
    if hasattr(batch, "__dataclass_fields__"):
        return [t for value in vars(batch).values() for t in flatten_tensors(value)]
    return []


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers of data parallelism and of torch.compile."""
    while True:
        parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = module.module if parallel else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def call_arguments(batch: Batch) -> tuple[list[Any], dict[str, Any]]:
    """Return a batch as positional and keyword arguments of the module.

    >>> call_arguments({"x": 1})
    ([], {'x': 1})
    """
    if isinstance(batch, Mapping):
        return [], dict(batch)
    return (list(batch), {}) if isinstance(batch, (tuple, list)) else ([batch], {})


def batch_size(module: nn.Module, tensors: Sequence[Tensor]) -> int:
    """Return the number of inputs: the first axis, or the second where the module takes sequences first.

    >>> batch_size(nn.LSTM(3, 4), [torch.zeros(5, 2, 3)])
    2
    """
    if not tensors or tensors[0].dim() == 0:
        raise UserError("the batch holds no tensor with an axis of samples: give a tensor [B, …], or several of them.")
    heads = (module, *module.children())
    if tensors[0].numel() == 0:
        raise UserError(f"the batch holds no sample, its shape is {list(tensors[0].shape)}: give at least one.")
    late = any(getattr(m, "batch_first", True) is False for m in heads) and tensors[0].dim() > 2
    return tensors[0].shape[1 if late else 0]


def clone_tensors(value: Any, double: bool = False) -> Any:
    """Copy every tensor of a nested batch, so that a module that works in place leaves the user's own alone."""
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy.double() if double and copy.is_floating_point() else copy
    if isinstance(value, dict):
        return {key: clone_tensors(v, double) for key, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(clone_tensors(v, double) for v in value)
    return value


def vocabulary_size(tensors: Sequence[Tensor]) -> int | None:
    """Return how many different tokens there are at least, where the first input holds whole numbers."""
    first = tensors[0]
    return int(first.max()) + 1 if first.dtype in (torch.int64, torch.int32) and first.numel() else None


def is_float_tensor(value: Any) -> bool:
    """Whether a value is a tensor of floating numbers with elements in it."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0 and not value.is_meta
