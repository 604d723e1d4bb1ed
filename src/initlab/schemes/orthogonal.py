"""Orthogonal weights: Haar-distributed, scaled, at the center tap, and mirrored so that ReLU looks linear."""

import math
from dataclasses import replace
from functools import partial
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


def widening_factor(shape: tuple[int, ...]) -> float:
    """Return max(√(m/n), 1) for m units and n inputs: the factor by which an orthogonal layer that widens is too small.

    >>> widening_factor((8, 2)), widening_factor((2, 8))
    (2.0, 1.0)
    """
    return max(math.sqrt(shape[0] / math.prod(shape[1:])), 1.0)


def fill_orthogonal(
    weight: Tensor, *, gain: float, generator: torch.Generator, widen: bool = False, center: bool = False, **_: Any
) -> Tensor:
    """Fill `weight` (out, in, *receptive) with gain·Q, Q Haar.

    Args:
        weight: a contiguous float32 tensor.
        gain: factor on Q.
        generator: where the draws come from.
        widen: multiply by `widening_factor` too.
        center: put Q at the center tap and 0 elsewhere, instead of spreading it over (in, *receptive).
    """
    target = center_tap(weight.zero_()) if center else weight
    factor = gain * widening_factor(tuple(target.shape)) if widen else gain
    target.copy_((factor * haar(target.shape[0], target[0].numel(), generator)).view(target.shape))
    return weight


def orthogonal_law(
    fans: Fans,
    gain: float,
    role: str,
    shape: tuple[int, ...],
    *,
    widen: bool = False,
    center: bool = False,
    **_: Any,
) -> Law:
    """Return the law that `fill_orthogonal` promises of a block of this shape.

    >>> delta = [orthogonal_law(Fans(4, 4), 1.0, "hidden", shape, center=True) for shape in ((4, 4), (4, 4, 3, 3))]
    >>> delta[0].variance, delta[1].variance * 9, delta[1].support_on
    (0.25, 0.25, 'center')
    """
    matrix = shape[:2] if center else (shape[0], math.prod(shape[1:]))
    law = _semi_orthogonal_law(gain * widening_factor(matrix) if widen else gain, *matrix)
    if not center:
        return law
    taps = math.prod(shape[2:])
    return replace(
        law,
        variance=law.variance / taps,
        kurtosis=law.kurtosis * taps,
        part=lambda weight: flatten_units(center_tap(weight)),
        defect=off_center_defect,
        support_on="center" if taps > 1 else "all",
    )


def _semi_orthogonal_law(gain: float, rows: int, columns: int, **more: Any) -> Law:
    bound, size = abs(gain), max(rows, columns)
    # An element of a random unit vector in N dimensions: E x⁴ = 3/(N(N+2)).
    return Law("orthogonal", 0.0, gain**2 / size, (-bound, bound), 3 * size / (size + 2), orthogonal=gain, **more)


def off_center_defect(weight: Tensor) -> float:
    """Return the largest magnitude of an element off the center tap."""
    rest = weight.detach().clone()
    center_tap(rest).zero_()
    return float(rest.abs().max())


def _delta_structure(kind: str, shape: tuple[int, ...], role: str) -> str | None:
    if kind in ("conv", "transposed_conv") and shape[0] < shape[1]:
        return f"it needs out ≥ in channels and here are {shape[0]} out of {shape[1]} in"
    return None


def _mirrored_copies(role: str) -> tuple[int, int]:
    # Units come in pairs (h, −h); inputs from outside (data, table rows) and the readout's outputs do not.
    return (1 if role == "readout" else 2), (1 if role in ("first", "embedding") else 2)


def _looks_linear(weight: Tensor, *, gain: float, role: str, generator: torch.Generator, **_: Any) -> Tensor:
    up, down = _mirrored_copies(role)
    half = weight[: weight.shape[0] // up, : weight.shape[1] // down]
    base = gain * haar(half.shape[0], half[0].numel(), generator).view(half.shape)
    row = base if down == 1 else torch.cat([base, -base], 1)
    return weight.copy_(row if up == 1 else torch.cat([row, -row]))


def _looks_linear_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    up, down = _mirrored_copies(role)
    rows, columns = shape[0] // up, shape[1] // down

    def part(weight: Tensor) -> Tensor:
        return flatten_units(weight[:rows, :columns])

    def defect(weight: Tensor) -> float:
        mirrored = [weight[:rows] + weight[rows:]] if up == 2 else []
        mirrored += [weight[:, :columns] + weight[:, columns:]] if down == 2 else []
        return max((float(difference.abs().max()) for difference in mirrored), default=0.0)

    size = columns * math.prod(shape[2:])
    return _semi_orthogonal_law(gain, rows, size, part=part, defect=defect, independent=False)


def _looks_linear_structure(kind: str, shape: tuple[int, ...], role: str) -> str | None:
    up, down = _mirrored_copies(role)
    if shape[0] % up or shape[1] % down:
        return (
            f"it mirrors units in pairs and a {role} layer of {shape[1]} inputs and {shape[0]} outputs has an odd one"
        )
    return None


SAXE = "Saxe, McClelland & Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear networks"
XIAO = "Xiao et al. 2018, Dynamical Isometry and a Mean Field Theory of CNNs"
MARTENS = "Martens et al. 2021, Rapid training of deep neural networks without skip connections or normalization"
BALDUZZI = "Balduzzi et al. 2017, The Shattered Gradients Problem"


def _orthogonal_scheme(
    name: str, formula: str, reference: str, year: int, *, widen: bool = False, center: bool = False, **more: Any
) -> Scheme:
    fill = partial(fill_orthogonal, widen=widen, center=center)
    law = partial(orthogonal_law, widen=widen, center=center)
    return Scheme(name, formula, fill, law, reference, year, own_gain=unit_gain, **more)


# fmt: off
ROWS = (
    _orthogonal_scheme("orthogonal", "gain·Q, Q Haar; W Wᵀ or Wᵀ W = gain² I", SAXE, 2014),
    _orthogonal_scheme("scaled_orthogonal", "gain·max(√(m/n), 1)·Q", MARTENS, 2021, widen=True),
    _orthogonal_scheme("delta_orthogonal", "center tap gain·Q, all other taps 0; dense layers orthogonal", XIAO, 2018,
                       center=True, structure=_delta_structure, dense_counterpart="orthogonal"),
    Scheme("looks_linear", "[[W₀, −W₀], [−W₀, W₀]], W₀ = gain·Q", _looks_linear, _looks_linear_law, BALDUZZI, 2017,
           own_gain=unit_gain, needs=("W", "role"), structure=_looks_linear_structure),
)
# fmt: on
