"""Spectra of large symmetric operators: Lanczos with full reorthogonalisation, and the quadrature it carries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from initlab.system.random_streams import generator


@dataclass(frozen=True)
class Spectrum:
    """A quadrature of the eigenvalue distribution: mean of f over eigenvalues ≈ Σ weights · f(nodes).

    `largest` converges fast; `smallest` is an upper bound on the smallest eigenvalue.
    """

    nodes: Tensor
    weights: Tensor

    @property
    def largest(self) -> float:
        """The largest eigenvalue found."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue found."""
        return float(self.nodes.min())


def lanczos(
    multiply: Callable[[Tensor], Tensor], size: int, *, steps: int, probes: int, like: Tensor, seed: int = 0
) -> Spectrum:
    """Estimate the spectrum of a positive semi-definite operator that is known by its products with vectors.

    Stochastic Lanczos quadrature: each probe v starts a Krylov space, whose tridiagonal matrix T has eigenvalues θ
    (nodes) and squared first components of eigenvectors (weights). Source: Ubaru, Chen and Saad 2017, *Fast
    estimation of tr(f(A)) via stochastic Lanczos quadrature*.

    Arguments: `multiply` [size, probes] -> [size, probes], column by column; `like`: a tensor of the device and dtype
    that vectors should have.

    >>> found = lanczos(lambda v: v * torch.arange(1.0, 4.0)[:, None], 3, steps=8, probes=1, like=torch.zeros(()))
    >>> round(found.largest, 5), round(found.smallest, 5)
    (3.0, 1.0)
    """
    signs = torch.randint(0, 2, (size, probes), generator=generator("spectrum probes", seed)).double() * 2 - 1
    basis = (signs / size**0.5)[None]  # [step, size, probe]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(1, min(steps, size) + 1):
        image = multiply(basis[-1].to(like)).to("cpu", torch.float64)
        diagonal.append((image * basis[-1]).sum(0))
        for _ in range(2):  # once loses orthogonality where eigenvalues have converged
            image = image - (basis * (basis * image).sum(1, keepdim=True)).sum(0)
        length = image.norm(dim=0)
        # Where a Krylov space is exhausted, what is left is rounding: it gets no weight.
        spent = length <= torch.finfo(like.dtype).eps * size * torch.stack(diagonal).abs().amax(0)
        if step == min(steps, size) or bool(spent.all()):
            break
        beside.append(torch.where(spent, torch.zeros(()), length))
        basis = torch.cat([basis, torch.where(spent, torch.zeros(()), image / length)[None]])
    matrix = torch.diag_embed(torch.stack(diagonal, -1))
    if beside:
        between = torch.stack(beside[: len(diagonal) - 1], -1)
        matrix = matrix + torch.diag_embed(between, 1) + torch.diag_embed(between, -1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = vectors[:, 0].square() / probes
    told = weights > 1e-12  # the nodes of exhausted spaces are made up
    return Spectrum(values[told].clamp(min=0), weights[told])
