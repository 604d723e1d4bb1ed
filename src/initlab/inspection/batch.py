"""What a module is called with: its arguments, the number of inputs, copies that may be changed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.inspection.torch_internals import compiled_module

Batch: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]


def flatten_tensors(batch: object) -> list[Tensor]:
    """Return the tensors of a batch or an output in order: nested tuples, lists, mappings and data classes.

    >>> [t.item() for t in flatten_tensors({"a": torch.tensor(1), "b": (None, torch.tensor(2))})]
    [1, 2]
    """
    if isinstance(batch, Tensor):
        return [batch]
    values: Any = ()
    if isinstance(batch, dict):
        values = batch.values()
    elif isinstance(batch, (tuple, list)):
        values = batch
    elif hasattr(batch, "__dataclass_fields__"):
        values = vars(batch).values()
    return [tensor for value in values for tensor in flatten_tensors(value)]


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of data parallelism and of torch.compile."""
    while True:
        parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = module.module if parallel else compiled_module(module)
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

    Args:
        module: the module that is called.
        tensors: the tensors of its batch.

    Raises:
        UserError: no tensor has an axis of samples, or the first one holds no sample.

    >>> batch_size(nn.LSTM(3, 4), [torch.zeros(5, 2, 3)])
    2
    """
    if not tensors or tensors[0].dim() == 0:
        raise UserError("the batch holds no tensor with an axis of samples: give a tensor [B, …], or several of them.")
    first = tensors[0]
    if first.numel() == 0:
        raise UserError(f"the batch holds no sample, its shape is {list(first.shape)}: give at least one.")
    sequence_first = any(getattr(m, "batch_first", True) is False for m in (module, *module.children()))
    return first.shape[1 if sequence_first and first.dim() > 2 else 0]


def clone_tensors(value: Any, double: bool = False) -> Any:
    """Clone every tensor of a nested batch, so that a module that works in place does not change the user's.

    Args:
        value: a tensor, or tensors in nested tuples, lists and dictionaries.
        double: clone floating tensors in float64.
    """
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy.double() if double and copy.is_floating_point() else copy
    if isinstance(value, dict):
        return {key: clone_tensors(v, double) for key, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(clone_tensors(v, double) for v in value)
    return value


def vocabulary_size(tensors: Sequence[Tensor]) -> int | None:
    """Return the largest token + 1 where the first input holds integers, else None."""
    first = tensors[0]
    return int(first.max()) + 1 if first.dtype in (torch.int64, torch.int32) and first.numel() else None


def is_float_tensor(value: Any) -> bool:
    """Return whether a value is a floating-point tensor with elements in memory."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0 and not value.is_meta
