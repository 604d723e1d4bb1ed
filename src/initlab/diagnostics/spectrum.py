"""Spectra of large symmetric operators: Lanczos with full reorthogonalization, and their quadrature."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from initlab.system.random_streams import generator


@dataclass(frozen=True)
class Spectrum:
    """A quadrature of the eigenvalue distribution: mean of f over eigenvalues ≈ Σ weights · f(nodes)."""

    nodes: Tensor
    weights: Tensor

    @property
    def largest(self) -> float:
        """The largest node, which converges fast to the largest eigenvalue."""
        return float(self.nodes.max())


def lanczos(multiply: Callable[[Tensor], Tensor], size: int, *, steps: int, probes: int, like: Tensor) -> Spectrum:
    """Estimate the spectrum of a positive semi-definite operator from its products with vectors.

    Stochastic Lanczos quadrature: each probe v starts a Krylov space, whose tridiagonal matrix T has eigenvalues θ
    (nodes) and squared first components of eigenvectors (weights). Source: Ubaru, Chen and Saad 2017, *Fast
    estimation of tr(f(A)) via stochastic Lanczos quadrature*.

    Args:
        multiply: [size, probes] -> [size, probes], the products of the operator with each column.
        size: its number of rows.
        steps: steps of the iteration.
        probes: number of random vectors.
        like: a tensor of the device and dtype that vectors have in products.

    >>> spectrum = lanczos(lambda v: v * torch.arange(1.0, 4.0)[:, None], 3, steps=8, probes=1, like=torch.zeros(()))
    >>> round(spectrum.largest, 5)
    3.0
    """
    signs = torch.randint(0, 2, (size, probes), generator=generator("spectrum probes")).double() * 2 - 1
    basis = (signs / size**0.5)[None]  # [step, size, probe]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    for step in range(1, min(steps, size) + 1):
        image = multiply(basis[-1].to(like)).to("cpu", torch.float64)
        diagonal.append((image * basis[-1]).sum(0))
        for _ in range(2):  # one pass loses orthogonality where eigenvalues have converged
            image = image - (basis * (basis * image).sum(1, keepdim=True)).sum(0)
        length = image.norm(dim=0)
        # Where a Krylov space is exhausted, the rest is rounding: it gets no weight.
        spent = length <= torch.finfo(like.dtype).eps * size * torch.stack(diagonal).abs().amax(0)
        if step == min(steps, size) or bool(spent.all()):
            break
        off_diagonal.append(torch.where(spent, torch.zeros(()), length))
        basis = torch.cat([basis, torch.where(spent, torch.zeros(()), image / length)[None]])
    matrix = torch.diag_embed(torch.stack(diagonal, -1))
    if off_diagonal:
        between = torch.stack(off_diagonal[: len(diagonal) - 1], -1)
        matrix = matrix + torch.diag_embed(between, 1) + torch.diag_embed(between, -1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = vectors[:, 0].square() / probes
    real = weights > 1e-12  # the nodes of exhausted spaces are artifacts
    return Spectrum(values[real].clamp(min=0), weights[real])
