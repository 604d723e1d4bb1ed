"""What a user's own code returns as inputs and targets, turned into tensors; what would change its meaning is refused.

A *fault* is the rest of a sentence that begins with who returned it: "training inputs that are complex: …".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.errors import UserError

RENUMBER = "np.unique(y, return_inverse=True)[1] numbers classes from 0"


class InvalidArrays(Exception):
    """Values that cannot be inputs or targets; the text says which, why and the remedy."""


def to_inputs(values: Any, what: str) -> Tensor:
    """Return uint8 images [n, C, H, W] or finite float32 inputs [n, ...]; raises Fault for all else.

    >>> to_inputs([[0.0, 1.0]], "inputs").dtype, to_inputs(np.zeros((2, 3, 3), "uint8"), "inputs").shape
    (torch.float32, torch.Size([2, 1, 3, 3]))
    """
    x = to_tensor(values, what)
    if x.dim() < 2:
        raise InvalidArrays(
            f"{what} of shape {list(x.shape)}: give one row per sample, [n, …] (x[:, None] makes one of each)."
        )
    if 0 in x.shape:
        raise InvalidArrays(
            f"{what} of shape {list(x.shape)}, which hold nothing: give at least one sample of one number."
        )
    if x.dtype == torch.uint8:
        return x.unsqueeze(1) if x.dim() == 3 else x
    return to_float32(x, what)


def to_targets(values: Any, what: str) -> Tensor:
    """Return class labels [n] from 0 on (int64) or finite float32 targets [n, outputs]; raises Fault for all else.

    >>> to_targets([0, 2, 1], "targets"), to_targets([0.5, 1.0], "targets").shape
    (tensor([0, 2, 1]), torch.Size([2, 1]))
    """
    y = to_tensor(values, what)
    if y.is_floating_point():
        if y.dim() not in (1, 2) or 0 in y.shape:
            raise InvalidArrays(
                f"{what} of shape {list(y.shape)}: give a regression one row of numbers each, [n, outputs]."
            )
        return to_float32(y, what).reshape(len(y), -1)
    if y.dim() != 1:
        raise InvalidArrays(
            f"{what} that are whole numbers of shape {list(y.shape)}: class labels are one for each sample, [n] "
            "(y.ravel() of a column, y.argmax(1) of one-hot rows); targets of a regression are floats."
        )
    if len(y) and (least := int(y.min())) < 0:
        raise InvalidArrays(f"{what} with the class label {least}: labels are whole numbers from 0 on; {RENUMBER}.")
    return y.long()


def count_classes(labels: Sequence[Tensor]) -> int:
    """Return the largest label + 1; raises Fault where most outputs would belong to no sample.

    >>> count_classes([torch.tensor([0, 1]), torch.tensor([2])])
    3
    """
    found = torch.unique(torch.cat(list(labels)))
    classes = int(found[-1]) + 1
    if len(torch.unique(labels[0])) < 2:
        raise InvalidArrays(
            f"class label {int(labels[0][0])} for every training sample: there is nothing to tell apart."
        )
    if classes > 2 * len(found):
        some = ", ".join(map(str, found[:3].tolist())) + (", …" if len(found) > 3 else "")
        raise InvalidArrays(
            f"{len(found)} class labels ({some}) up to {classes - 1}, which would make {classes} outputs: {RENUMBER}."
        )
    return classes


def to_float32(x: Tensor, what: str) -> Tensor:
    """Return numbers in float32; raises Fault where they are not finite there, or all would be 0."""
    if bad := int((~torch.isfinite(x)).sum()):
        where = torch.nonzero(~torch.isfinite(x))[0].tolist()
        raise InvalidArrays(
            f"{what} with {bad} of {x.numel()} values not finite (the first at {where} is {x[tuple(where)]:g}): "
            "leave out those samples, or put numbers in their place."
        )
    found = x.float()
    if not torch.isfinite(found).all():
        raise InvalidArrays(f"{what} as large as {x.abs().max():g}, which float32 cannot hold: rescale them.")
    if bool((x != 0).any()) and not bool((found != 0).any()):
        raise InvalidArrays(f"{what} of at most {x.abs().max():g}, which float32 holds as 0: rescale them.")
    exact = x.is_floating_point() or bool((found.long() == x).all())
    if not exact:
        raise InvalidArrays(
            f"{what} that are whole numbers up to {x.abs().max():d}, which float32 rounds: rescale them."
        )
    return found


def to_tensor(values: Any, what: str) -> Tensor:
    """Return an array, a tensor or nested lists as a dense real tensor on the CPU; raises Fault for all else."""
    if isinstance(values, Tensor):
        return to_cpu_tensor(values, what)
    if hasattr(values, "toarray") or isinstance(values, np.ma.MaskedArray):
        dense = ".toarray()" if hasattr(values, "toarray") else ".filled(…)"
        raise InvalidArrays(f"{what} that are a {type(values).__name__}: give an ordinary array ({dense}).")
    if isinstance(values, (list, tuple)) and any(isinstance(each, Tensor) for each in values):
        values = [each.detach().cpu().numpy() if isinstance(each, Tensor) else each for each in values]
    try:
        array = np.array(values)
    except (ValueError, TypeError) as error:
        raise InvalidArrays(
            f"{what} that make no array ({str(error).splitlines()[0]}): give every sample the same shape."
        ) from error
    if array.dtype.kind in "US":
        raise InvalidArrays(f"{what} that are text ({str(array.flat[0])!r}): give numbers; {RENUMBER}.")
    if array.dtype.kind not in "buif" and array.dtype.kind != "c":
        raise InvalidArrays(
            f"{what} that are an array of {array.dtype} of shape {list(array.shape)}: "
            "give numbers in one array, such as np.stack(x).astype('float32')."
        )
    if array.dtype.kind == "u" and array.dtype != np.uint8:  # torch knows little of them
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise InvalidArrays(f"{what} as large as {array.max()}, beyond 2^63: give smaller numbers, or floats.")
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return to_cpu_tensor(torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))), what)


def to_cpu_tensor(values: Tensor, what: str) -> Tensor:
    """Return a dense real tensor on the CPU; raises Fault for complex, sparse and empty-handed (meta) ones."""
    if values.is_complex():
        raise InvalidArrays(f"{what} that are complex: give real numbers, such as torch.stack([x.real, x.imag], 1).")
    if values.layout != torch.strided:
        raise InvalidArrays(f"{what} that are a sparse tensor: give x.to_dense().")
    if values.is_meta:
        raise InvalidArrays(f"{what} on the meta device, which hold no values: build them on the CPU.")
    if values.is_quantized:
        raise InvalidArrays(f"{what} that are quantized: give x.dequantize().")
    found = values.detach().cpu()
    if found.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return to_tensor(found.numpy(), what)
    return found.to(torch.int64) if found.dtype == torch.bool else found


def invalid_return(subject: str, fault: InvalidArrays) -> UserError:
    """Return the refusal: who returned it, and the fault."""
    return UserError(f"{subject} returned {fault}")
