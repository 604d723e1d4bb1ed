"""Var[W] = gain² · scale / fan: one engine, and LeCun, Glorot, He and the rules of thumb as points of it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from initlab.activations import Activation
from initlab.inspection import Fans
from initlab.schemes import laws
from initlab.schemes.record import BiasRule, Law, Scheme

TRUNCATED_STD = 0.87962566103423978
"""Std of a standard normal cut at ±2: what its std is divided by, so that the variance is the promised one."""


def select_fan(fans: Fans, mode: str) -> float:
    """Return the fan that `mode` names.

    >>> select_fan(Fans(300, 100), "fan_avg"), select_fan(Fans(400, 100), "fan_geo_avg")
    (200.0, 200.0)
    """
    if mode == "fan_in":
        return fans.fan_in
    if mode == "fan_out":
        return fans.fan_out
    if mode == "fan_avg":
        return (fans.fan_in + fans.fan_out) / 2
    return math.sqrt(fans.fan_in * fans.fan_out)


def fill_scaled(
    weight: Tensor,
    *,
    fans: Fans,
    gain: float,
    generator: torch.Generator,
    scale: float,
    mode: str,
    distribution: str,
    **_: Any,
) -> Tensor:
    """Fill `weight` with Var = gain² · scale / fan(mode) under the named distribution."""
    std = gain * math.sqrt(scale / select_fan(fans, mode))
    if distribution == "uniform":
        bound = math.sqrt(3) * std
        return init.uniform_(weight, -bound, bound, generator=generator)
    if distribution == "normal":
        return init.normal_(weight, 0, std, generator=generator)
    sigma = std / TRUNCATED_STD
    return init.trunc_normal_(weight, 0, sigma, -2 * sigma, 2 * sigma, generator=generator)


def scaled_law(
    fans: Fans, gain: float, role: str, shape: tuple[int, ...], *, scale: float, mode: str, distribution: str
) -> Law:
    """Return the law that `fill_scaled` promises."""
    std = gain * math.sqrt(scale / select_fan(fans, mode))
    if distribution == "uniform":
        return laws.uniform(-math.sqrt(3) * std, math.sqrt(3) * std)
    if distribution == "normal":
        return laws.normal(0, std)
    sigma = std / TRUNCATED_STD
    return laws.truncated_normal(0, sigma, -2 * sigma, 2 * sigma)


def unit_gain(act: Activation, fans: Fans, role: str, **_: Any) -> float:
    """Return 1: LeCun's, Glorot's and the orthogonal schemes' own gain, whatever the activation."""
    return 1.0


def he_gain(act: Activation, fans: Fans, role: str, **_: Any) -> float:
    """Return √(2/(1 + a²)), a the slope of a leaky activation and 0 for every other, linear included."""
    return math.sqrt(2 / (1 + act.leaky_slope**2))


def random_walk_gain(act: Activation, fans: Fans, role: str, **_: Any) -> float:
    """Return exp(1/2n); √2 · exp(1.2/(max(n, 6) − 2.4)) for ReLU: the log of the gradient's norm walks without drift.

    The paper derives these two; every activation other than ReLU gets the linear one.
    """
    n = fans.fan_in
    if act.rectifier and not act.leaky_slope:
        return math.sqrt(2) * math.exp(1.2 / (max(n, 6) - 2.4))
    return math.exp(1 / (2 * n))


def siren_gain(act: Activation, fans: Fans, role: str, **_: Any) -> float:
    """Return √2/ω₀ for hidden layers, ω₀ = `act.omega` (1 for an activation without it), and 1 for the first."""
    return 1.0 if role == "first" else math.sqrt(2) / act.parameters.get("omega", 1.0)


def _siren_bound(fans: Fans, gain: float, role: str) -> float:
    return gain / fans.fan_in if role == "first" else gain * math.sqrt(3 / fans.fan_in)


def _siren(weight: Tensor, *, fans: Fans, gain: float, role: str, generator: torch.Generator) -> Tensor:
    bound = _siren_bound(fans, gain, role)
    return init.uniform_(weight, -bound, bound, generator=generator)


def _siren_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    bound = _siren_bound(fans, gain, role)
    return laws.uniform(-bound, bound)


def _torch_bias(bias: Tensor, *, fans: Fans, generator: torch.Generator, **_: Any) -> Tensor:
    bound = 1 / math.sqrt(fans.fan_in)
    return init.uniform_(bias, -bound, bound, generator=generator)


def _torch_bias_law(fans: Fans, **_: Any) -> Law:
    bound = 1 / math.sqrt(fans.fan_in)
    return laws.uniform(-bound, bound)


TORCH_BIAS = BiasRule(_torch_bias, _torch_bias_law)


def _scaling_scheme(
    name: str,
    formula: str,
    reference: str,
    year: int | None,
    own_gain: Callable[..., float] = unit_gain,
    *,
    open_keys: tuple[str, ...] = ("distribution",),
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    **more: Any,
) -> Scheme:
    # A point of the engine: the keys named open are the user's, the others are what makes the scheme.
    values: dict[str, Any] = {"scale": scale, "mode": mode, "distribution": distribution}
    closed = {key: value for key, value in values.items() if key not in open_keys}
    return Scheme(
        name,
        formula,
        partial(fill_scaled, **closed),
        partial(scaled_law, **closed),
        reference,
        year,
        {key: values[key] for key in open_keys},
        own_gain,
        elementwise=True,
        **more,
    )


LECUN = "LeCun, Bottou, Orr & Müller 1998, Efficient BackProp"
SELF = "Klambauer, Unterthiner, Mayr & Hochreiter 2017, Self-Normalizing Neural Networks"
GLOROT = "Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks"
HE = "He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers"
WALK = "Sussillo & Abbott 2014, Random Walk Initialization for Training Very Deep Feedforward Networks"
SIREN = "Sitzmann et al. 2020, Implicit Neural Representations with Periodic Activation Functions"

# fmt: off
ROWS = (
    _scaling_scheme("variance_scaling", "Var = gain²·scale/fan(mode)", "Keras' and JAX's VarianceScaling", None,
                    open_keys=("scale", "mode", "distribution"), distribution="truncated_normal"),
    _scaling_scheme("lecun_uniform", "U(±gain·√(3/n))", LECUN, 1998, distribution="uniform", common=True),
    _scaling_scheme("lecun_normal", "N(0, gain²/n)", SELF, 2017, common=True),
    _scaling_scheme("glorot_uniform", "U(±gain·√(6/(n+m)))", GLOROT, 2010, mode="fan_avg", distribution="uniform",
                    common=True),
    _scaling_scheme("glorot_normal", "N(0, gain²·2/(n+m))", GLOROT, 2010, mode="fan_avg", common=True),
    _scaling_scheme("he_uniform", "U(±gain·√(3/n)), gain = √(2/(1+a²))", HE, 2015, he_gain,
                    open_keys=("mode", "distribution"), distribution="uniform", common=True),
    _scaling_scheme("he_normal", "N(0, gain²/n), gain = √(2/(1+a²))", HE, 2015, he_gain,
                    open_keys=("mode", "distribution"), common=True),
    _scaling_scheme("uniform_rule", "U(±gain/√n)", LECUN, 1998, open_keys=(), scale=1 / 3, distribution="uniform"),
    _scaling_scheme("normal_rule", "N(0, gain²/n)", "rule of thumb", None, open_keys=()),
    _scaling_scheme("torch_default", "U(±gain/√n), bias U(±1/√n)",
                    "PyTorch, torch.nn.Linear and Conv: kaiming_uniform(a=√5)", None,
                    open_keys=(), scale=1 / 3, distribution="uniform", bias=TORCH_BIAS),
    _scaling_scheme("random_walk", "N(0, gain²/n), gain = exp(1/2n), relu: √2·exp(1.2/(max(n,6)−2.4))", WALK, 2014,
                    random_walk_gain, open_keys=(), needs=("W", "act")),
    Scheme("siren", "first U(±gain/n), hidden U(±gain·√(3/n)), gain = √2/ω₀, bias U(±1/√n)", _siren, _siren_law,
           SIREN, 2020, own_gain=siren_gain, bias=TORCH_BIAS, needs=("W", "role", "act"), elementwise=True),
)
# fmt: on
