"""Symmetry of weights: units that are copies of one another, and the number of directions that a weight uses."""

from functools import partial

import torch
from torch import Tensor

from initlab.diagnostics.spectrum import lanczos
from initlab.system.random_streams import generator

MAX_EXACT_SIDE = 1024
"""Smaller side up to which all singular values are computed; beyond it their distribution is estimated."""

MAX_ESTIMATED_ELEMENTS = 2**24
"""Elements up to which it is estimated; a larger matrix has no effective rank."""

HASHED_ELEMENTS = 2**20
"""Elements that are hashed at once."""

STEPS, PROBES = 24, 4


def effective_rank(x: Tensor) -> Tensor:
    """Return the number of directions that a weight uses: exp(−Σ pᵢ ln pᵢ), pᵢ = σᵢ/Σσ over its singular values σ.

    Between 1 (a rank-one matrix, such as ones) and min(out, in) (an orthogonal one); 0 for a zero matrix. Source: Roy
    and Vetterli 2007, *The effective rank: a measure of effective dimensionality*. Where the smaller side exceeds
    `MAX_EXACT_SIDE`, an estimate by stochastic Lanczos quadrature, good to a few percent for random matrices; NaN
    beyond `MAX_ESTIMATED_ELEMENTS` elements.

    Args:
        x: [N, G, out, in], float64: G blocks of a block-diagonal matrix (the groups of a convolution).

    >>> three = torch.stack([torch.ones(1, 4, 3), torch.eye(4, 3)[None], torch.zeros(1, 4, 3)])
    >>> effective_rank(three.double()).round(decimals=9).tolist()
    [1.0, 3.0, 0.0]
    """
    if min(x.shape[-2:]) > MAX_EXACT_SIDE:
        return torch.stack([_estimated_rank(matrix) for matrix in x])
    return _entropy_rank(singular_squares(x).flatten(1).sqrt(), torch.ones(()))


def singular_squares(x: Tensor) -> Tensor:
    """Return squared singular values [..., min(out, in)] of matrices [..., out, in]; those lost in rounding are 0.

    NaN for a matrix that holds NaN or infinity.
    """
    size = x.abs().amax((-2, -1), keepdim=True)
    zero = torch.zeros(())
    x = torch.where(torch.isfinite(size) & (size > 0), x / size, zero)  # squares of very large or small numbers fit
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    values = torch.linalg.eigvalsh(gram)
    noise = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:].clamp(min=0)
    size = size[..., 0]
    return torch.where(torch.isfinite(size), torch.where(values > noise, values, zero) * size**2, torch.nan)


def _entropy_rank(values: Tensor, weights: Tensor) -> Tensor:
    # exp of the entropy of p = σ/Σσ: ln Σσ − Σ σ ln σ / Σσ.
    total = (weights * values).sum(-1)
    logs = torch.where(values > 0, values, torch.ones(())).log()
    entropy = total.log() - (weights * values * logs).sum(-1) / total
    return torch.where(total > 0, entropy.exp(), total * 0)


def _estimated_rank(blocks: Tensor) -> Tensor:
    if blocks.numel() > MAX_ESTIMATED_ELEMENTS:
        return torch.tensor(torch.nan)
    nodes, weights = [], []
    for block in blocks:
        wide = (block if block.shape[0] <= block.shape[1] else block.T).float()  # half the memory to move
        spectrum = lanczos(partial(_gram_product, wide), wide.shape[0], steps=STEPS, probes=PROBES, like=wide)
        noise = torch.finfo(torch.float32).eps * wide.shape[0] * spectrum.largest
        nodes.append(torch.where(spectrum.nodes > noise, spectrum.nodes, torch.zeros(())))
        # The trace is known exactly: Σσ² is the sum of squares.
        estimate = (spectrum.weights * nodes[-1]).sum()
        scale = wide.double().square().sum().cpu() / torch.where(estimate > 0, estimate, torch.ones(()))
        weights.append(spectrum.weights * scale)
    return _entropy_rank(torch.cat(nodes).sqrt(), torch.cat(weights))


def _gram_product(a: Tensor, v: Tensor) -> Tensor:
    return a @ (a.T @ v)


def _row_hashes(rows: Tensor, odd: Tensor) -> Tensor:
    bits = (rows.double() + 0.0).view(torch.int64)  # −0 counts as 0
    return ((bits ^ (bits >> 29)) * odd).sum(-1)


def duplicate_units(x: Tensor) -> Tensor:
    """Return the number of units whose incoming weights (and bias) equal those of another unit, bit by bit.

    Such units compute the same and, where their outgoing weights are equal too, stay equal. The first of each
    kind is not counted: a matrix of ones with U units has U − 1 duplicates.

    Args:
        x: [N, G, out, in], the bias as a further column where there is one; units of different groups have different
            inputs and are not compared.

    >>> duplicate_units(torch.tensor([[[[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]]]))
    tensor([1.], dtype=torch.float64)
    """
    if x.shape[-2] == 1:
        return torch.zeros(x.shape[0], dtype=torch.float64)
    first = x[..., 0].sort(dim=-1).values
    if bool(torch.isfinite(first).all()) and not bool((first.diff(dim=-1) == 0).any()):
        return torch.zeros(x.shape[0], dtype=torch.float64)  # no two units agree even in their first weight
    # A hash in wrapping integers: equal rows have equal keys however the sum is ordered, unlike a float projection.
    odd = torch.randint(-(2**62), 2**62, (x.shape[-1],), generator=generator("unit hashes")).to(x.device) * 2 + 1
    keys = torch.cat(
        [_row_hashes(rows, odd) for rows in x.split(max(1, HASHED_ELEMENTS // x[..., 0, :].numel()), dim=-2)], dim=-1
    )
    copies = (keys.sort(dim=-1).values.diff(dim=-1) == 0).sum(-1)
    return copies.sum(-1).double()
