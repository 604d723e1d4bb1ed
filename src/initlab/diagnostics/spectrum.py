"""Spectra of large symmetric operators: Lanczos with full reorthogonalisation, and the quadrature it carries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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

    Arguments: `multiply` [size] -> [size]; `like`: a tensor of the device and dtype that vectors should have.

    >>> found = lanczos(lambda v: v * torch.arange(1.0, 4.0), 3, steps=8, probes=1, like=torch.zeros(()).double())
    >>> round(found.largest, 6), round(found.smallest, 6)
    (3.0, 1.0)
    """
    generator = torch.Generator().manual_seed(seed)
    nodes, weights = [], []
    for _ in range(probes):
        start = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        theta, first = _krylov(multiply, start / size**0.5, min(steps, size), like)
        nodes.append(theta)
        weights.append(first / probes)
    return Spectrum(torch.cat(nodes).clamp(min=0), torch.cat(weights))


def _krylov(multiply: Callable[[Tensor], Tensor], start: Tensor, steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
    basis = [start]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(steps):
        image = multiply(basis[-1].to(like)).to("cpu", torch.float64)
        diagonal.append(float(image @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):  # once loses orthogonality where eigenvalues have converged
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        if len(diagonal) == steps or length <= 1e-10 * max(map(abs, diagonal)):
            break
        beside.append(length)
        basis.append(image / length)
    size = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if size > 1:
        between = torch.tensor(beside[: size - 1], dtype=torch.float64)
        matrix = matrix + torch.diag(between, 1) + torch.diag(between, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[0].square()
