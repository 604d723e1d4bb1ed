"""Orthogonal weights: Haar-distributed, scaled, at the centre tap, and mirrored so that ReLU looks linear."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from initlab.inspection import Fans
from initlab.schemes.laws import center_tap, flatten_units
from initlab.schemes.record import Law, Scheme
from initlab.schemes.scaling import unit_gain


def haar(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a float64 (rows, columns) matrix, Haar-distributed among those with orthonormal rows (columns if tall).

    QR of a Gaussian matrix with the signs of R's diagonal fixed. Source: Mezzadri 2007, "How to generate random
    matrices from the classical compact groups".

    >>> q = haar(3, 5, torch.Generator().manual_seed(0))
    >>> torch.allclose(q @ q.T, torch.eye(3, dtype=torch.float64))
    True
    """
    return init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64, device="cpu"), generator=generator)


def _orthogonal(weight: Tensor, *, gain: float, generator: torch.Generator, **_: Any) -> Tensor:
    return weight.copy_((gain * haar(weight.shape[0], weight[0].numel(), generator)).view(weight.shape))


def _semi_orthogonal_law(gain: float, rows: int, columns: int, **more: Any) -> Law:
    bound = abs(gain)
    variance = gain**2 / max(rows, columns)
    size = max(rows, columns)
    # An element of a random unit vector in N dimensions: E x⁴ = 3/(N(N+2)).
    return Law("orthogonal", 0.0, variance, (-bound, bound), 3 * size / (size + 2), orthogonal=gain, **more)


def _orthogonal_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    return _semi_orthogonal_law(gain, shape[0], math.prod(shape[1:]))


def widening_factor(shape: tuple[int, ...]) -> float:
    """Return max(√(m/n), 1): what an orthogonal layer of m units and n inputs lacks where it widens.

    >>> widening_factor((8, 2)), widening_factor((2, 8))
    (2.0, 1.0)
    """
    return max(math.sqrt(shape[0] / math.prod(shape[1:])), 1.0)


def _scaled_orthogonal(weight: Tensor, *, gain: float, generator: torch.Generator, **_: Any) -> Tensor:
    return _orthogonal(weight, gain=gain * widening_factor(tuple(weight.shape)), generator=generator)


def _scaled_orthogonal_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    return _semi_orthogonal_law(gain * widening_factor(shape), shape[0], math.prod(shape[1:]))


def _delta_orthogonal(weight: Tensor, *, gain: float, generator: torch.Generator, **_: Any) -> Tensor:
    weight.zero_()
    center_tap(weight).copy_(gain * haar(weight.shape[0], weight.shape[1], generator))
    return weight


def off_center_defect(weight: Tensor) -> float:
    """Return the largest magnitude of an element off the centre tap."""
    rest = weight.detach().clone()
    center_tap(rest).zero_()
    return float(rest.abs().max())


def _delta_orthogonal_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    return delta_law(gain, shape)


def delta_law(gain: float, shape: tuple[int, ...]) -> Law:
    """Return the law of gain·Q at the centre tap and 0 elsewhere; of a matrix, of gain·Q.

    >>> delta_law(1.0, (4, 4)).variance, delta_law(1.0, (4, 4, 3, 3)).variance * 9
    (0.25, 0.25)
    """
    taps = math.prod(shape[2:])
    law = _semi_orthogonal_law(
        gain, shape[0], shape[1], part=lambda w: flatten_units(center_tap(w)), defect=off_center_defect
    )
    if taps == 1:
        return law
    return replace(law, variance=law.variance / taps, kurtosis=law.kurtosis * taps)


def _delta_structure(kind: str, shape: tuple[int, ...], role: str) -> str | None:
    if kind in ("conv", "transposed_conv") and shape[0] < shape[1]:
        return f"it needs out ≥ in channels and here are {shape[0]} out of {shape[1]} in"
    return None


def _mirrored_copies(shape: tuple[int, ...], role: str) -> tuple[int, int]:
    # Units come in pairs (h, −h); inputs from outside (data, table rows) and the readout's outputs do not.
    return (1 if role == "readout" else 2), (1 if role in ("first", "embedding") else 2)


def _looks_linear(weight: Tensor, *, gain: float, role: str, generator: torch.Generator, **_: Any) -> Tensor:
    up, down = _mirrored_copies(tuple(weight.shape), role)
    half = weight[: weight.shape[0] // up, : weight.shape[1] // down]
    base = gain * haar(half.shape[0], half[0].numel(), generator).view(half.shape)
    row = base if down == 1 else torch.cat([base, -base], 1)
    return weight.copy_(row if up == 1 else torch.cat([row, -row]))


def _looks_linear_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    up, down = _mirrored_copies(shape, role)
    rows, columns = shape[0] // up, shape[1] // down

    def part(weight: Tensor) -> Tensor:
        return flatten_units(weight[:rows, :columns])

    def defect(weight: Tensor) -> float:
        mirrored = [weight[:rows] + weight[rows:]] if up == 2 else []
        mirrored += [weight[:, :columns] + weight[:, columns:]] if down == 2 else []
        return max((float(difference.abs().max()) for difference in mirrored), default=0.0)

    return _semi_orthogonal_law(gain, rows, columns * math.prod(shape[2:]), part=part, defect=defect)


def _looks_linear_structure(kind: str, shape: tuple[int, ...], role: str) -> str | None:
    up, down = _mirrored_copies(shape, role)
    if shape[0] % up or shape[1] % down:
        return (
            f"it mirrors units in pairs and a {role} layer of {shape[1]} inputs and {shape[0]} outputs has an odd one"
        )
    return None


SAXE = "Saxe, McClelland & Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear networks"
XIAO = "Xiao et al. 2018, Dynamical Isometry and a Mean Field Theory of CNNs"
MARTENS = "Martens et al. 2021, Rapid training of deep neural networks without skip connections or normalization"
BALDUZZI = "Balduzzi et al. 2017, The Shattered Gradients Problem"

ROWS = (
    Scheme(
        "orthogonal",
        "gain·Q, Q Haar; W Wᵀ or Wᵀ W = gain² I",
        _orthogonal,
        _orthogonal_law,
        SAXE,
        2014,
        own_gain=unit_gain,
    ),
    Scheme(
        "scaled_orthogonal",
        "gain·max(√(m/n), 1)·Q",
        _scaled_orthogonal,
        _scaled_orthogonal_law,
        MARTENS,
        2021,
        own_gain=unit_gain,
    ),
    Scheme(
        "delta_orthogonal",
        "centre tap gain·Q, all other taps 0; dense layers orthogonal",
        _delta_orthogonal,
        _delta_orthogonal_law,
        XIAO,
        2018,
        own_gain=unit_gain,
        structure=_delta_structure,
        conv_only=True,
    ),
    Scheme(
        "looks_linear",
        "[[W₀, −W₀], [−W₀, W₀]], W₀ = gain·Q",
        _looks_linear,
        _looks_linear_law,
        BALDUZZI,
        2017,
        own_gain=unit_gain,
        needs=("W", "role"),
        structure=_looks_linear_structure,
    ),
)
