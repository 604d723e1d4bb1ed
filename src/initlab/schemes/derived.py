"""Schemes whose scale theory derives before they fill: from the activation (critical), or layer by layer (autoinit).

They are filled with the gain that they are given, which `initialize.from_theory` derives.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from initlab.inspection import Fans
from initlab.schemes import laws
from initlab.schemes.orthogonal import fill_orthogonal, orthogonal_law
from initlab.schemes.record import BiasRule, Law, Scheme
from initlab.schemes.scaling import fill_scaled, scaled_law


def _bias(bias: Tensor, *, generator: torch.Generator, sigma_b: float | None, **_: Any) -> Tensor:
    return init.normal_(bias, 0, sigma_b or 0.0, generator=generator)


def _bias_law(fans: Fans, *, sigma_b: float | None, **_: Any) -> Law:
    return laws.normal(0.0, sigma_b) if sigma_b else laws.constant(0.0)


def _gaussian(weight: Tensor, *, fans: Fans, gain: float, generator: torch.Generator, **_: Any) -> Tensor:
    return init.normal_(weight, 0, gain / math.sqrt(fans.fan_in), generator=generator)


def _gaussian_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...], **_: Any) -> Law:
    return laws.normal(0.0, gain / math.sqrt(fans.fan_in))


POOLE = (
    "Poole et al. 2016, Exponential expressivity in deep neural networks; Schoenholz et al. 2017, Deep Information "
    "Propagation; Hayou et al. 2019, On the impact of the activation function on deep neural networks training"
)
PENNINGTON = (
    "Pennington, Schoenholz & Ganguli 2017, Resurrecting the sigmoid in deep learning through dynamical isometry; "
    "Xiao et al. 2018, Dynamical Isometry and a Mean Field Theory of CNNs"
)
BINGHAM = "Bingham & Miikkulainen 2023, AutoInit: Analytic Signal-Preserving Weight Initialization for Neural Networks"
_critical = partial(
    Scheme,
    parameters={"sigma_b": None, "q_star": None},
    instead="σ_w follows from init.sigma_b or init.q_star; for a gain of your own use init=normal_rule or "
    "init=orthogonal",
    bias=BiasRule(_bias, _bias_law),
    needs=("W", "act"),
    derived="critical",
)
# χ₁ is fan_in · Var[W]: Q alone has columns of norm 1 where a layer widens, and χ₁ < 1 there.
_WIDE_AT_CENTER: dict[str, Any] = {"widen": True, "center": True}

# fmt: off
ROWS = (
    _critical("critical", "N(0, σ_w²/n), bias N(0, σ_b²), χ₁(σ_w, σ_b) = 1", _gaussian, _gaussian_law, POOLE, 2016,
              elementwise=True),
    _critical("critical_orthogonal",
              "σ_w·max(√(m/n), 1)·Q, at a convolution's center tap; bias N(0, σ_b²), χ₁(σ_w, σ_b) = 1",
              partial(fill_orthogonal, **_WIDE_AT_CENTER), partial(orthogonal_law, **_WIDE_AT_CENTER),
              PENNINGTON, 2017),
    Scheme("autoinit",
           "Var = 1/(n·(µ²+ν)), µ and ν the mean and variance of a layer's inputs, followed through the network",
           partial(fill_scaled, scale=1.0, mode="fan_in"), partial(scaled_law, scale=1.0, mode="fan_in"), BINGHAM,
           2023, {"distribution": "normal"},
           instead="every layer's gain follows from what the layers before it do; use init=lecun_normal init.gain=…",
           needs=("W", "act", "F"), elementwise=True, derived="moments"),
)
# fmt: on
