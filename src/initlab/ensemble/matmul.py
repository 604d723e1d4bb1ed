"""Matrix products of all members in one call, with results that depend on neither their number nor their neighbours.

In float32 a sum depends on its order, and a matrix library picks the order by shapes, by the alignment of its operands
and by the number of threads. One batched call treats every member alike when each begins on a 64-byte boundary, no
side is a single row or column (those are other routines, chosen by the number of members too), and one thread computes
it. Where a shape breaks this, members are multiplied one by one, from aligned copies. One product for all members
([B, in] × [in, N·out]) is no way out: there the order of summation changes with N.
"""

from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from initlab.ensemble.cpu.openblas import ALIGNMENT, multiply_strided, openblas_is_faster

MIN_OPENBLAS_FLOPS = 1e6  # operations from which on one call for every member pays, by OpenBLAS


def fills_vectors(elements: int, like: Tensor, vectors: int = 1) -> bool:
    """Do so many elements fill whole vectors (or pairs of them), so that a neighbour begins on a boundary?

    >>> fills_vectors(128 * 10, torch.zeros(1)), fills_vectors(100 * 10, torch.zeros(1))
    (True, False)
    """
    return elements * like.element_size() % (ALIGNMENT * vectors) == 0


def allocate_members(members: int, shape: torch.Size, like: Tensor) -> Tensor:
    """Return an uninitialized tensor [members, *shape] whose members all begin on a boundary.

    >>> allocate_members(3, torch.Size([5, 2]), torch.zeros(1)).stride()
    (16, 2, 1)
    """
    elements = shape.numel()
    padded = -(-elements * like.element_size() // ALIGNMENT) * ALIGNMENT // like.element_size()
    flat = torch.empty(members, padded, dtype=like.dtype, device=like.device)
    return flat[:, :elements].view(members, *shape)


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return a b (+ bias) of every member, [N, p, q] × [N, q, r] + [N, r], on one of three ways that the shape decides.

    On a CPU the members' bits do not depend on N; no gradients flow through it.
    """
    (p, q), r = a.shape[1:], b.shape[2]
    alone = (
        a.device.type == "cpu"
        and a.dtype == torch.float32
        and 2 * p * q * r >= MIN_OPENBLAS_FLOPS
        and openblas_is_faster()
    )
    alike = min(p, q, r) > 1 and all(fills_vectors(size, a) for size in (p * q, q * r, p * r))
    if a.device.type != "cpu" or (alike and not alone):
        if bias is not None:
            return torch.baddbmm(bias.unsqueeze(1), a, b, out=out)
        return torch.bmm(a, b, out=out)
    out = a.new_empty(len(a), p, r) if out is None else out
    # All views of a tensor at once: one by one, they would cost as much time as a small product.
    shifts = repeat(None) if bias is None else bias.unbind()
    for row, left, right, shift in zip(out.unbind(), a.unbind(), b.unbind(), shifts, strict=False):
        if alone:
            multiply_strided(left, right, row, shift)
        else:
            row.copy_(aligned_product(left, right, shift))
    return out


def aligned_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return a b (+ bias) of two matrices, from a boundary on."""
    a, b = (m if m.data_ptr() % ALIGNMENT == 0 else m.clone() for m in (a, b))
    return a @ b if bias is None else torch.addmm(bias, a, b)


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
        return multiply(x, weight.transpose(1, 2), bias)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple:
        """Return the gradients of x, W and b."""
        x, weight = ctx.saved_tensors
        into_weight, into_bias = ctx.sinks
        multiply(delta.transpose(1, 2), x, out=into_weight)
        if into_bias is not None:
            torch.sum(delta, 1, out=into_bias)
        return multiply(delta, weight) if ctx.needs_input_grad[0] else None, into_weight, into_bias, None
