"""Operands of a matrix library: it checks nothing, and reads and writes past matrices that do not fit each other."""

import torch
from torch import Tensor


def second_operand_shape(out: Tensor, a: Tensor, turn_a: bool = False, turn_b: bool = False) -> torch.Size:
    """Return the shape that b must have, as it lies, so that a b (the one or the other turned) fits `out`.

    Raises:
        ValueError: a and `out` do not fit each other, or one is no float32 matrix on the CPU without gaps.

    >>> out, a = torch.zeros(2, 5), torch.zeros(2, 3)
    >>> second_operand_shape(out, a), second_operand_shape(out, a, turn_b=True)
    (torch.Size([3, 5]), torch.Size([5, 3]))
    """
    for matrix in (out, a):
        require_contiguous(matrix, 2)
    rows, inner = reversed(a.shape) if turn_a else a.shape
    if rows != out.shape[0]:
        raise ValueError(f"a product of {_shape(a)} does not fit {_shape(out)}: they have other numbers of rows")
    return torch.Size((out.shape[1], inner) if turn_b else (inner, out.shape[1]))


def require_operand(b: Tensor, wanted: torch.Size) -> None:
    """Raise ValueError where the second matrix of a product is not of the shape that the others need.

    >>> require_operand(torch.zeros(4, 5), torch.Size([3, 5]))
    Traceback (most recent call last):
    ...
    ValueError: shapes cannot be multiplied: the second is 4x5, and the product needs 3x5
    """
    if b.shape != wanted:
        needed = "x".join(map(str, wanted))
        raise ValueError(f"shapes cannot be multiplied: the second is {_shape(b)}, and the product needs {needed}")
    require_contiguous(b, 2)


def require_contiguous(tensor: Tensor, dimensions: int | None = None) -> None:
    """Raise ValueError where a tensor is not float32 numbers on the CPU that lie one after the other."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
        lie = "without gaps" if tensor.is_contiguous() else "with gaps"
        raise ValueError(f"a matrix library was given {tensor.dtype} numbers {lie} on {tensor.device}")
    if dimensions not in (None, tensor.dim()):
        raise ValueError(f"a matrix library was given a tensor of shape {_shape(tensor)} for a matrix")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
