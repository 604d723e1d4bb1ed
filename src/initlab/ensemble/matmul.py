"""Matrix products of all members in one call, with results that depend on neither their number nor their neighbors.

In float32 a sum depends on its order, and a matrix library picks the order by shapes, by the alignment of its operands
and by the number of threads. One batched call treats every member alike when each begins on a 64-byte boundary, no
side is a single row or column (those are other routines, chosen by the number of members too), and one thread computes
it. Where a shape breaks this, members are multiplied one by one, from aligned copies. One product for all members
([B, in] × [in, N·out]) is not possible: there the order of summation changes with N.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from initlab.ensemble.cpu import fast_product

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def fills_vectors(elements: int, like: Tensor, vectors: int = 1) -> bool:
    """Return whether this many elements fill whole vectors (or pairs of them), so that a neighbor is aligned.

    >>> fills_vectors(128 * 10, torch.zeros(1)), fills_vectors(100 * 10, torch.zeros(1))
    (True, False)
    """
    return elements * like.element_size() % (ALIGNMENT * vectors) == 0


def allocate_members(members: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialized tensor [members, *shape] whose members all begin on a boundary.

    >>> allocate_members(3, (5, 2), torch.zeros(1)).stride()
    (16, 2, 1)
    """
    elements = torch.Size(shape).numel()
    padded = -(-elements * like.element_size() // ALIGNMENT) * ALIGNMENT // like.element_size()
    flat = torch.empty(members, padded, dtype=like.dtype, device=like.device)
    return flat[:, :elements].view(members, *shape)


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b (+ bias) of every member, [N, p, q] × [N, q, r] + [N, r].

    On a CPU the members' bits do not depend on N; no gradients flow through it.
    """
    (p, q), r = a.shape[1:], b.shape[2]
    product = fast_product(a, b)
    aligned = min(p, q, r) > 1 and all(fills_vectors(size, a) for size in (p * q, q * r, p * r))
    if not a.is_cpu or (aligned and product is None):
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias.unsqueeze(1), a, b)
    product, out = product or aligned_product, allocate_members(len(a), (p, r), a)
    # All views of a tensor at once: one by one, they would cost as much time as a small product.
    rows = repeat(None) if bias is None else bias.unbind()
    for left, right, row, own in zip(a.unbind(), b.unbind(), rows, out.unbind(), strict=False):
        product(left, right, row, own)
    return out


def aligned_product(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write a b (+ bias) of two matrices, from aligned memory."""
    a, b = (m if m.data_ptr() % ALIGNMENT == 0 else m.clone() for m in (a, b))
    out.copy_(a @ b if bias is None else torch.addmm(bias, a, b))


class Affine(torch.autograd.Function):
    """x Wᵀ + b of every member.

    Autograd's own backward pass would leave the gradients transposed, and rounded by the number of members.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute x [N, B, in], weight [N, out, in], bias [N, out] -> [N, B, out]."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight.transpose(1, 2), bias)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, W and b."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            multiply(delta, weight) if wants_x else None,
            multiply(delta.transpose(1, 2), x) if wants_weight else None,
            delta.sum(1) if wants_bias else None,
        )
