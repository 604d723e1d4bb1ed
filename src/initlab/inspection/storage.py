"""Tensors whose elements are not all stored: reading them one by one could need more memory than there is."""

import math

import torch
from torch import Tensor


def storage_refusal(tensor: Tensor) -> tuple[str, str] | None:
    """Return (kind, reason) of a tensor whose elements are not all stored one by one, or None for a plain one.

    A file of a few bytes may hold a sparse or an expanded tensor of 10¹² elements, which would need terabytes element
    by element. Only sizes are read.

    >>> storage_refusal(torch.zeros(3, 2))
    >>> storage_refusal(torch.zeros(1).expand(10**6, 10**6))[1]
    'it is expanded (1 stored number stands for 1000000000000): give it memory of its own with .clone()'
    """
    if getattr(tensor, "is_nested", False):
        return "sparse", "it is nested, several tensors of different shapes in one: keep them apart"
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        return "sparse", f"it is sparse ({layout}), not every element is stored: make it dense with .to_dense()"
    # Subclasses (shards, quantized types) store their elements elsewhere.
    plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and not tensor.is_quantized
    if tensor.is_meta or tensor.numel() < 2 or not plain:
        return None
    apart = math.prod(size if step else 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    stored = min(apart, tensor.untyped_storage().nbytes() // tensor.element_size())
    if stored >= tensor.numel():
        return None
    numbers = f"{stored} stored number{' stands' if stored == 1 else 's stand'}"
    return "expanded", f"it is expanded ({numbers} for {tensor.numel()}): give it memory of its own with .clone()"
