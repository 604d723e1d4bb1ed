"""Patterns: identity, Hadamard, sinusoids, sparse rows, and rows of a fixed norm."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from initlab.inspection import Fans
from initlab.schemes import laws
from initlab.schemes.laws import center_tap, flatten_units
from initlab.schemes.record import BiasRule, Law, Scheme
from initlab.schemes.scaling import select_fan, unit_gain


def _at_center(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    weight = torch.zeros(shape, dtype=torch.float32, device="cpu")
    center_tap(weight).copy_(matrix)
    return weight


def _eye(gain: float, shape: tuple[int, ...]) -> Tensor:
    return _at_center(gain * torch.eye(*shape[:2], device="cpu"), shape)


def _identity(weight: Tensor, *, gain: float, **_: Any) -> Tensor:
    return weight.copy_(_eye(gain, tuple(weight.shape)))


def _identity_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    share = min(shape[:2]) / math.prod(shape)
    return laws.fixed_pattern(lambda: _eye(gain, shape), gain * share, gain**2 * share * (1 - share), gain, "identity")


def hadamard(rows: int, columns: int) -> Tensor:
    """Return the top-left (rows, columns) part of Sylvester's Hadamard matrix: (−1) to the number of bits of i & j.

    >>> hadamard(2, 2)
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    bits = torch.arange(rows, dtype=torch.int32, device="cpu")[:, None] & torch.arange(
        columns, dtype=torch.int32, device="cpu"
    )
    for shift in (16, 8, 4, 2, 1):
        bits ^= bits >> shift
    return 1 - 2 * (bits & 1).to(torch.float32)


def _partial_hadamard(gain: float, shape: tuple[int, ...]) -> Tensor:
    order = 2 ** math.ceil(math.log2(shape[0]))
    return _at_center(hadamard(*shape[:2]) * (gain / math.sqrt(order)), shape)


def _zero_hadamard(weight: Tensor, *, gain: float, **_: Any) -> Tensor:
    shape = tuple(weight.shape)
    return weight.copy_(_eye(gain, shape) if shape[0] <= shape[1] else _partial_hadamard(gain, shape))


def _zero_hadamard_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    if shape[0] <= shape[1]:
        return _identity_law(fans, gain, role, shape)
    weight = _partial_hadamard(gain, shape).double()
    mean, variance = float(weight.mean()), float(weight.var(correction=0))
    return laws.fixed_pattern(lambda: weight, mean, variance, float(weight.abs().max()), "hadamard")


def _sinusoids(shape: tuple[int, ...]) -> Tensor:
    out, inputs = shape[0], math.prod(shape[1:])
    unit = torch.arange(1, out + 1, dtype=torch.float64, device="cpu")[:, None]
    position = torch.arange(inputs, dtype=torch.float64, device="cpu")
    return torch.sin(unit * (2 * math.pi * position / inputs + 2 * math.pi / out)).view(shape)


def _scaled_sinusoids(fans: Fans, gain: float, shape: tuple[int, ...], mode: str) -> Tensor:
    waves = _sinusoids(shape)
    return waves * (gain / math.sqrt(select_fan(fans, mode)) / float(waves.std(correction=0)))


def _sinusoidal(weight: Tensor, *, fans: Fans, gain: float, mode: str, **_: Any) -> Tensor:
    return weight.copy_(_scaled_sinusoids(fans, gain, tuple(weight.shape), mode))


def _sinusoidal_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...], *, mode: str) -> Law:
    weight = _scaled_sinusoids(fans, gain, shape, mode)
    mean, variance = float(weight.mean()), gain**2 / select_fan(fans, mode)
    return laws.fixed_pattern(lambda: weight, mean, variance, float(weight.abs().max()), "sinusoidal")


def _sinusoidal_structure(kind: str, shape: tuple[int, ...], role: str) -> str | None:
    out, inputs = shape[0], math.prod(shape[1:])
    if out <= 2 and inputs <= 2 and float(_sinusoids(shape).std(correction=0)) < 1e-9:
        return f"every sinusoid of {out} units over {inputs} inputs is zero"
    return None


def _nonzero_count(shape: tuple[int, ...], nonzeros: int) -> int:
    return min(int(nonzeros), math.prod(shape[1:]))


def _sparse(weight: Tensor, *, generator: torch.Generator, nonzeros: int, std: float, **_: Any) -> Tensor:
    rows, columns = weight.shape[0], weight[0].numel()
    count = _nonzero_count(tuple(weight.shape), nonzeros)
    # The places of the largest of independent keys are a uniform choice without repetition; float64 has no ties.
    keys = torch.rand(rows, columns, dtype=torch.float64, device="cpu", generator=generator)
    values = init.normal_(torch.empty(rows, count, dtype=torch.float32, device="cpu"), 0, std, generator=generator)
    matrix = torch.zeros(rows, columns, dtype=torch.float32, device="cpu")
    return weight.copy_(matrix.scatter_(1, keys.topk(count).indices, values).view(weight.shape))


def _sparse_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...], *, nonzeros: int, std: float) -> Law:
    count = _nonzero_count(shape, nonzeros)
    share = count / math.prod(shape[1:])
    return Law(
        "sparse",
        0.0,
        share * std**2,
        kurtosis=3 / share,
        cdf=laws.normal(0, std).cdf,
        score=laws.normal(0, std).score,
        free=lambda w: w[w != 0],
        defect=lambda w: float(((flatten_units(w) != 0).sum(1) - count).abs().max()),
    )


def _row_norm(fans: Fans, beta: float) -> float:
    units = fans.fan_out / fans.receptive
    return beta * units ** (1 / fans.fan_in)


def _nguyen_widrow(weight: Tensor, *, fans: Fans, generator: torch.Generator, beta: float, **_: Any) -> Tensor:
    init.uniform_(weight, -1, 1, generator=generator)
    rows = flatten_units(weight)
    return weight.copy_((rows * (_row_norm(fans, beta) / rows.norm(dim=1, keepdim=True))).view(weight.shape))


def _nguyen_widrow_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...], *, beta: float) -> Law:
    radius, columns = _row_norm(fans, beta), math.prod(shape[1:])
    return Law(
        "fixed_norm",
        0.0,
        radius**2 / columns,
        (-radius, radius),
        kurtosis=1.8,
        defect=lambda w: float((flatten_units(w).norm(dim=1) - radius).abs().max()),
    )


def _nguyen_widrow_bias(bias: Tensor, *, fans: Fans, generator: torch.Generator, beta: float) -> Tensor:
    radius = _row_norm(fans, beta)
    return init.uniform_(bias, -radius, radius, generator=generator)


def _nguyen_widrow_bias_law(fans: Fans, *, beta: float) -> Law:
    radius = _row_norm(fans, beta)
    return laws.uniform(-radius, radius)


LE = "Le, Jaitly & Hinton 2015, A Simple Way to Initialize Recurrent Networks of Rectified Linear Units"
ZAGORUYKO = "Zagoruyko & Komodakis 2017, DiracNets: Training Very Deep Neural Networks Without Skip-Connections"
ZHAO = "Zhao, Schäfer & Anandkumar 2022, ZerO Initialization: Initializing Neural Networks with only Zeros and Ones"
FERNANDEZ = "Fernández-Hernández et al. 2025, Sinusoidal Initialization, Time for a New Start"
MARTENS = "Martens 2010, Deep learning via Hessian-free optimization"
NGUYEN = "Nguyen & Widrow 1990, Improving the learning speed of 2-layer neural networks"

# fmt: off
ROWS = (
    Scheme("identity", "gain·I, ones on the diagonal; the center tap of a convolution", _identity, _identity_law,
           LE, 2015, own_gain=unit_gain),
    Scheme("dirac", "center tap gain·I per group, all other taps 0; dense layers gain·I", _identity, _identity_law,
           ZAGORUYKO, 2017, own_gain=unit_gain, dense_counterpart="identity"),
    Scheme("zero_hadamard",
           "gain·I if m ≤ n, else gain·H/√p, H of order p = 2^⌈log₂ m⌉; the center tap of a convolution",
           _zero_hadamard, _zero_hadamard_law, ZHAO, 2022, own_gain=unit_gain),
    Scheme("sinusoidal", "W_ij ∝ sin(i·(2πj/n + 2π/m)), i = 1…m, Var = gain²/fan(mode)", _sinusoidal,
           _sinusoidal_law, FERNANDEZ, 2025, {"mode": "fan_avg"}, unit_gain, structure=_sinusoidal_structure),
    Scheme("sparse", "per unit `nonzeros` weights N(0, std²), the others 0", _sparse, _sparse_law, MARTENS, 2010,
           {"nonzeros": 15, "std": 1.0}, instead="set init.std and init.nonzeros"),
    Scheme("nguyen_widrow", "rows of norm β = beta·m^(1/n), directions of U(−1, 1)ⁿ, bias U(±β)", _nguyen_widrow,
           _nguyen_widrow_law, NGUYEN, 1990, {"beta": 0.7}, instead="set init.beta",
           bias=BiasRule(_nguyen_widrow_bias, _nguyen_widrow_bias_law)),
)
# fmt: on
