"""What a user's code returns as inputs and targets, as tensors; a conversion that would change its meaning is refused.

The text of `InvalidArrays` continues a sentence that names the user's function: "training inputs that are complex: …".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

RENUMBER = "np.unique(y, return_inverse=True)[1] numbers classes from 0"


class InvalidArrays(Exception):
    """Values that cannot be inputs or targets; the text says which, why, and the remedy."""


def to_inputs(values: Any, what: str) -> Tensor:
    """Return uint8 images [n, C, H, W] or finite float32 inputs [n, ...].

    Args:
        values: what the user's code returned.
        what: the words for it in messages.

    Raises:
        InvalidArrays: it is neither.

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
    """Return class labels [n] from 0 on (int64) or finite float32 targets [n, outputs].

    Args:
        values: what the user's code returned.
        what: the words for it in messages.

    Raises:
        InvalidArrays: it is neither.

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
    """Return the largest label + 1.

    Args:
        labels: int64, of the training and the test set.

    Raises:
        InvalidArrays: there is one class only, or most outputs would belong to no sample.

    >>> count_classes([torch.tensor([0, 1]), torch.tensor([2])])
    3
    """
    present = torch.unique(torch.cat(list(labels)))
    classes = int(present[-1]) + 1
    if len(torch.unique(labels[0])) < 2:
        raise InvalidArrays(
            f"class label {int(labels[0][0])} for every training sample: there is nothing to tell apart."
        )
    if classes > 2 * len(present):
        some = list_briefly(present.tolist())
        raise InvalidArrays(
            f"{len(present)} class labels ({some}) up to {classes - 1}, which would make {classes} outputs: {RENUMBER}."
        )
    return classes


def list_briefly(numbers: Sequence[int]) -> str:
    """Return the first three numbers as text.

    >>> list_briefly([1, 2, 3, 4])
    '1, 2, 3, …'
    """
    return ", ".join(map(str, numbers[:3])) + (", …" if len(numbers) > 3 else "")


def to_float32(x: Tensor, what: str) -> Tensor:
    """Return numbers in float32.

    Args:
        x: any real tensor.
        what: inputs or targets, for messages.

    Raises:
        InvalidArrays: they are not finite in float32, or would all be 0 or rounded there.
    """
    finite = torch.isfinite(x)
    if not finite.all():
        first = torch.nonzero(~finite)[0].tolist()
        raise InvalidArrays(
            f"{what} with {int((~finite).sum())} of {x.numel()} values not finite (the first at {first} is "
            f"{x[tuple(first)]:g}): leave out those samples, or put numbers in their place."
        )
    single = x.float()
    if not torch.isfinite(single).all():
        raise InvalidArrays(f"{what} as large as {x.abs().max():g}, which float32 cannot hold: rescale them.")
    if bool((x != 0).any()) and not bool((single != 0).any()):
        raise InvalidArrays(f"{what} of at most {x.abs().max():g}, which float32 holds as 0: rescale them.")
    if not x.is_floating_point() and not bool((single.long() == x).all()):
        raise InvalidArrays(
            f"{what} that are whole numbers up to {x.abs().max():d}, which float32 rounds: rescale them."
        )
    return single


def to_tensor(values: Any, what: str) -> Tensor:
    """Return an array, a tensor or nested lists as a dense real tensor on the CPU.

    Args:
        values: what the user's code returned.
        what: inputs or targets, for messages.

    Raises:
        InvalidArrays: they make no such tensor.
    """
    if isinstance(values, Tensor):
        return to_cpu_tensor(values, what)
    sparse = hasattr(values, "toarray")
    if sparse or isinstance(values, np.ma.MaskedArray):
        dense = ".toarray()" if sparse else ".filled(…)"
        raise InvalidArrays(f"{what} that are a {type(values).__name__}: give an ordinary array ({dense}).")
    if isinstance(values, (list, tuple)):
        values = [each.detach().cpu().numpy() if isinstance(each, Tensor) else each for each in values]
    try:
        array = np.array(values)
    except (ValueError, TypeError) as error:
        raise InvalidArrays(
            f"{what} that make no array ({str(error).splitlines()[0]}): give every sample the same shape."
        ) from error
    kind = array.dtype.kind
    if kind in "US":
        raise InvalidArrays(f"{what} that are text ({str(array.flat[0])!r}): give numbers; {RENUMBER}.")
    if kind not in "buifc":
        raise InvalidArrays(
            f"{what} that are an array of {array.dtype} of shape {list(array.shape)}: "
            "give numbers in one array, such as np.stack(x).astype('float32')."
        )
    if kind == "u" and array.dtype != np.uint8:  # torch has few operators for them
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise InvalidArrays(f"{what} as large as {array.max()}, beyond 2^63: give smaller numbers, or floats.")
        array = array.astype(np.int64)
    if kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return to_cpu_tensor(torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))), what)


def to_cpu_tensor(values: Tensor, what: str) -> Tensor:
    """Return a dense real tensor on the CPU.

    Args:
        values: a tensor of the user's.
        what: inputs or targets, for messages.

    Raises:
        InvalidArrays: it is complex, sparse, quantized or on the meta device.
    """
    for wrong, fault in (
        (values.is_complex(), "that are complex: give real numbers, such as torch.stack([x.real, x.imag], 1)"),
        (values.layout != torch.strided, "that are a sparse tensor: give x.to_dense()"),
        (values.is_meta, "on the meta device, which hold no values: build them on the CPU"),
        (values.is_quantized, "that are quantized: give x.dequantize()"),
    ):
        if wrong:
            raise InvalidArrays(f"{what} {fault}.")
    tensor = values.detach().cpu()
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return to_tensor(tensor.numpy(), what)
    return tensor.to(torch.int64) if tensor.dtype == torch.bool else tensor
