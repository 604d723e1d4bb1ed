"""Matrix products of all members in one call, with results that depend on neither their number nor their neighbours.

In float32 a sum depends on its order, and a matrix library picks the order by shapes, by the alignment of its operands
and by the number of threads. One batched call treats every member alike when each begins on a 64-byte boundary, no
side is a single row or column (those are other routines, chosen by the number of members too), and one thread computes
it. Where a shape breaks this, members are multiplied one by one, from aligned copies. One product for all members
([B, in] × [in, N·out]) is no way out: there the order of summation changes with N.
"""

from typing import Any

import torch
from torch import Tensor

BOUNDARY = 64  # bytes: a cache line, and the widest vector


def even(elements: int, like: Tensor, vectors: int = 1) -> bool:
    """Do so many elements fill whole vectors (or pairs of them), so that a neighbour begins on a boundary?

    >>> even(128 * 10, torch.zeros(1)), even(100 * 10, torch.zeros(1))
    (True, False)
    """
    return elements * like.element_size() % (BOUNDARY * vectors) == 0


def member_rows(members: int, shape: torch.Size, like: Tensor) -> Tensor:
    """Return an uninitialized tensor [members, *shape] whose members all begin on a boundary.

    >>> member_rows(3, torch.Size([5, 2]), torch.zeros(1)).stride()
    (16, 2, 1)
    """
    elements = shape.numel()
    padded = -(-elements * like.element_size() // BOUNDARY) * BOUNDARY // like.element_size()
    flat = torch.empty(members, padded, dtype=like.dtype, device=like.device)
    return flat[:, :elements].view(members, *shape)


def in_one_call(x: Tensor, weight: Tensor) -> bool:
    """May the products of a layer, x [N, B, in] with weight [N, out, in], be batched?"""
    if x.device.type != "cpu":
        return True
    batch, (outputs, inputs) = x.shape[1], weight.shape[1:]
    sizes = (batch * inputs, batch * outputs, inputs * outputs)
    return min(batch, inputs, outputs) > 1 and all(even(size, x) for size in sizes)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b of every member: x [N, B, in], weight [N, out, in], bias [N, out] -> [N, B, out]."""
    if in_one_call(x, weight):
        turned = weight.transpose(1, 2)
        return torch.bmm(x, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, turned)
    biases = [None] * len(x) if bias is None else bias
    return torch.stack(
        [torch.nn.functional.linear(aligned(h), aligned(w), b) for h, w, b in zip(x, weight, biases, strict=True)]
    )


def multiply(a: Tensor, b: Tensor, batched: bool, out: Tensor | None = None) -> Tensor:
    """Return the product of every member, [N, p, q] × [N, q, r]."""
    if batched:
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    products = [aligned(u) @ aligned(v) for u, v in zip(a, b, strict=True)]
    return torch.stack(products) if out is None else torch.stack(products, out=out)


def aligned(matrix: Tensor) -> Tensor:
    """Return the matrix, or a copy of the same strides, that begins on a boundary."""
    return matrix if matrix.data_ptr() % BOUNDARY == 0 else matrix.clone()


class Affine(torch.autograd.Function):
    """x Wᵀ + b of every member, whose backward pass writes the gradients of W and b where they are wanted.

    Autograd's own would leave them transposed, in memory that is new at every step: on a CPU the pages of that memory
    cost as much as the product.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sinks: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        """Compute x [N, B, in], weight [N, out, in], bias [N, out] -> [N, B, out]; `sinks` take the gradients."""
        ctx.save_for_backward(x, weight)
        ctx.sinks = sinks
        return affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple:
        """Return the gradients of x, W and b."""
        x, weight = ctx.saved_tensors
        into_weight, into_bias = ctx.sinks
        batched = in_one_call(x, weight)
        multiply(delta.transpose(1, 2), x, batched, out=into_weight)
        if into_bias is not None:
            torch.sum(delta, 1, out=into_bias)
        back = multiply(delta, weight, batched) if ctx.needs_input_grad[0] else None
        return back, into_weight, into_bias, None
