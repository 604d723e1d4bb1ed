"""Activations as records: the function, its module, its parameters, where it saturates and where it kinks.

Theory integrates `phi`, models build `module`, diagnostics count what lies outside `saturation`: one record feeds all.

**Saturation, the rule.** A preactivation is saturated where φ lies on a plateau other than φ(0): beyond it φ tends to a
constant that differs from φ(0), and |φ′| stays below 5 % of its largest value (`SATURATION_SLOPE`). So tanh, sigmoid,
erf, arctan, softsign, hardtanh and hardsigmoid saturate on both sides, ELU, CELU, SELU and softplus on the left, ReLU6
above 6. On a plateau at φ(0) itself a unit is dead, not saturated: the left half of ReLU, ReLU6, GELU, SiLU, Mish and
Hardswish counts in `dead_fraction`. linear, leaky ReLU, PReLU and sin have no plateau. The 5 % are a convention.

**Kinks.** The points where φ, φ′ or φ″ jumps. Between them φ is analytic: quadrature split there converges fast.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.config.aliases import ACT_ALIASES
from initlab.errors import UserError, did_you_mean
from initlab.system.imports import describe_contract, describe_exception, describe_value, is_target, load_target
from initlab.system.numbers import fits_float32

Interval: TypeAlias = tuple[float, float]

SATURATION_SLOPE = 0.05  # fraction of the largest |φ′| below which a plateau counts as saturated

POSITIVE_PARAMETERS = ("alpha", "beta", "omega")


@dataclass(frozen=True)
class Activation:
    """An activation function: φ and what theory, models and diagnostics need of it.

    Attributes:
        name: registry name.
        formula: φ in one line of text.
        phi: `phi(x, **parameters) -> Tensor`, elementwise, differentiable, exact to rounding in float64.
        module: `module(**parameters) -> nn.Module`, a fresh one: torch's own where torch has one.
        reference: authors, year, title.
        parameters: defaults, or the values bound by `bind`; their names are the keys `act.*`.
        saturation: interval outside which a preactivation is saturated (the rule is at the file's top), or None.
        kinks: points where φ, φ′ or φ″ jumps.
        rectifier: x for x > 0 and a·x for x < 0 (`leaky_slope`): what He's gain √(2/(1+a²)) is for.
        saturation_of: the interval as a function of the parameters, where it depends on them.

    >>> tanh = ACTIVATIONS["tanh"]
    >>> tanh(torch.tensor([0.0, 1.0], dtype=torch.float64))
    tensor([0.0000, 0.7616], dtype=torch.float64)
    >>> ACTIVATIONS["leaky_relu"].bind(negative_slope=0.2).build()
    LeakyReLU(negative_slope=0.2)
    """

    name: str
    formula: str
    phi: Callable[..., Tensor]
    module: Callable[..., nn.Module]
    reference: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    saturation: Interval | None = None
    kinks: tuple[float, ...] = ()
    rectifier: bool = False
    saturation_of: Callable[..., Interval] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.saturation_of is not None:
            object.__setattr__(self, "saturation", self.saturation_of(**self.parameters))

    def __hash__(self) -> int:
        # A dict of parameters has no hash, and results of theory are cached by record.
        return hash((self.name, tuple(sorted(self.parameters.items()))))

    def __call__(self, x: Tensor) -> Tensor:
        """Return φ(x) under the record's own parameters."""
        return self.phi(x, **self.parameters)

    @property
    def leaky_slope(self) -> float:
        """The slope a for x < 0 of a leaky activation (leaky ReLU, PReLU), else 0.

        >>> ACTIVATIONS["prelu"].leaky_slope, ACTIVATIONS["tanh"].leaky_slope
        (0.25, 0.0)
        """
        return float(self.parameters.get("negative_slope", 0.0))

    def build(self) -> nn.Module:
        """Return a fresh module under the record's own parameters."""
        return self.module(**self.parameters)

    def bind(self, **parameters: float) -> "Activation":
        """Return the record with these parameters in place of its own.

        Raises:
            UserError: no such parameter, or its value is not a finite number (alpha, beta, omega: positive).
        """
        for key, value in parameters.items():
            if key not in self.parameters:
                has = f"its parameters are {', '.join(self.parameters)}" if self.parameters else "it has no parameters"
                raise UserError(
                    f"act={self.name} has no parameter act.{key}; {has}.{did_you_mean(key, self.parameters)}"
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits_float32(value):
                raise UserError(f"act.{key}={value} is not a finite number in float32; default {self.parameters[key]}.")
            if key in POSITIVE_PARAMETERS and value <= 0:
                raise UserError(f"act.{key}={value} must be positive; the default is {self.parameters[key]}.")
        return replace(self, parameters={**self.parameters, **{key: float(v) for key, v in parameters.items()}})


class Elementwise(nn.Module):
    """A module that applies a function of a tensor, for activations torch has no module for.

    >>> Elementwise(torch.erf)
    Elementwise(erf)
    """

    def __init__(self, phi: Callable[..., Tensor], **parameters: float):
        super().__init__()
        self.phi = phi
        self.parameters_of_phi = parameters

    def forward(self, x: Tensor) -> Tensor:
        """Return φ(x)."""
        return self.phi(x, **self.parameters_of_phi)

    def extra_repr(self) -> str:
        """Show the function and its parameters."""
        return ", ".join(
            [_callable_name(self.phi), *(f"{key}={value}" for key, value in self.parameters_of_phi.items())]
        )


def activation(spec: "str | Activation | tuple[str, Mapping[str, Any]] | Callable[..., Tensor]") -> Activation:
    """Return the record that a name, a record, `(name, parameters)` or a callable stands for.

    A callable counts as smooth and never saturated, and its numeric keyword defaults are its parameters; where that is
    wrong, give an `Activation`. `("custom", {"target": "package.module:name"})` imports a record or a callable.

    Args:
        spec: `"relu"`, `ACTIVATIONS["relu"]`, `("leaky_relu", {"negative_slope": 0.2})`, `torch.tanh` or `nn.Tanh()`.

    Raises:
        UserError: the name is unknown (the nearest ones are named), or a parameter is.

    >>> activation("swish").name
    'silu'
    >>> activation(("leaky_relu", {"negative_slope": 0.2})).parameters
    {'negative_slope': 0.2}
    >>> activation(lambda x: x**3)(torch.tensor(2.0))
    tensor(8.)
    """
    if isinstance(spec, Activation):
        return spec
    if isinstance(spec, str):
        if is_target(spec):
            return activation(("custom", {"target": spec}))
        name = ACT_ALIASES.get(spec, spec)
        if name not in ACTIVATIONS:
            raise UserError(
                f"act={spec} is unknown.{did_you_mean(spec, [*ACTIVATIONS, *ACT_ALIASES])} "
                f"Choose one of {', '.join(ACTIVATIONS)}, or act=package.module:function."
            )
        return ACTIVATIONS[name]
    if isinstance(spec, tuple):
        name, parameters = spec[0], dict(spec[1])
        own = _load_custom(parameters.pop("target", None)) if name == "custom" else activation(name)
        return own.bind(**parameters)
    if callable(spec):
        return _from_callable(spec)
    raise UserError(f"act={spec!r} is no activation: give a name, a record, (name, parameters) or a callable.")


def _load_custom(target: Any) -> "Activation":
    imported, contract = load_target(target, "act.target"), describe_contract("act")
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    if not callable(imported):
        raise UserError(f"act.target={target} is {describe_value(imported)}{contract}.")
    try:  # before the training starts
        record = activation(imported)
        y = record(x)
    except Exception as error:  # whatever the user's own code raises
        reason = describe_exception(error)
        raise UserError(f"act.target={target} failed on a small tensor ({reason}){contract}.") from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        raise UserError(f"act.target={target} returned {describe_value(y)} for a tensor [2, 3]{contract}.")
    return record


def _from_callable(phi: Callable[..., Tensor]) -> Activation:
    phi = phi() if isinstance(phi, type) else phi
    name = _callable_name(phi)
    if isinstance(phi, nn.Module):
        return Activation(name, f"{phi}", phi, partial(copy.deepcopy, phi), "given by the user")
    try:
        arguments = list(inspect.signature(phi).parameters.values())
    except ValueError:  # torch's built-in functions show no signature
        arguments = []
    defaults = {a.name: float(a.default) for a in arguments if type(a.default) in (int, float)}
    return Activation(name, f"{name}(x)", phi, partial(Elementwise, phi), "given by the user", defaults)


def _callable_name(phi: Any) -> str:
    while isinstance(phi, partial):
        phi = phi.func
    return getattr(phi, "__name__", type(phi).__name__)


def _identity(x: Tensor) -> Tensor:
    return x


def _hardsigmoid(x: Tensor) -> Tensor:
    # Not F.hardsigmoid: its backward multiplies by 1/6 rounded to float32, which theory in float64 would see.
    return torch.clamp((x + 3) / 6, 0, 1)


def _sin(x: Tensor, omega: float) -> Tensor:
    return torch.sin(omega * x)


def _prelu_module(negative_slope: float) -> nn.Module:
    return nn.PReLU(init=negative_slope)


def _elu_interval(alpha: float) -> Interval:
    return math.log(SATURATION_SLOPE * max(1.0, alpha) / alpha) if alpha > SATURATION_SLOPE else 0.0, math.inf


def _celu_interval(alpha: float) -> Interval:
    return alpha * math.log(SATURATION_SLOPE), math.inf


def _softplus_interval(beta: float) -> Interval:
    return math.log(SATURATION_SLOPE / (1 - SATURATION_SLOPE)) / beta, math.inf


# Where |φ′| falls to the fraction s of its maximum: tanh′ = 1 − tanh², σ′ = (1 − tanh²(x/2))/4, erf′ ∝ exp(−x²).
_TANH = math.atanh(math.sqrt(1 - SATURATION_SLOPE))
_ARCTAN = math.sqrt(1 / SATURATION_SLOPE - 1)
_SOFTSIGN = 1 / math.sqrt(SATURATION_SLOPE) - 1
_ERF = math.sqrt(-math.log(SATURATION_SLOPE))

# Beyond βx = 40 softplus and the identity differ by less than float64 resolves; torch's own 20 leaves a jump of 2e-9.
_EXACT = 40.0

# fmt: off
ACTIVATIONS: dict[str, Activation] = {record.name: record for record in (
    Activation("linear", "x", _identity, nn.Identity, "Saxe et al. 2014, deep linear networks"),
    Activation("relu", "max(0, x)", torch.relu, nn.ReLU, "Nair & Hinton 2010, Rectified Linear Units",
               kinks=(0.0,), rectifier=True),
    Activation("leaky_relu", "x if x > 0 else negative_slope·x", F.leaky_relu, nn.LeakyReLU,
               "Maas, Hannun & Ng 2013, Rectifier Nonlinearities", {"negative_slope": 0.01}, kinks=(0.0,),
               rectifier=True),
    Activation("prelu", "x if x > 0 else a·x, a learned from negative_slope on", F.leaky_relu, _prelu_module,
               "He et al. 2015, Delving Deep into Rectifiers", {"negative_slope": 0.25}, kinks=(0.0,),
               rectifier=True),
    Activation("relu6", "min(max(0, x), 6)", F.relu6, nn.ReLU6, "Krizhevsky 2010, Convolutional Deep Belief Networks",
               saturation=(-math.inf, 6.0), kinks=(0.0, 6.0)),
    Activation("elu", "x if x > 0 else alpha·(exp(x) − 1)", F.elu, nn.ELU, "Clevert et al. 2016, ELUs",
               {"alpha": 1.0}, kinks=(0.0,), saturation_of=_elu_interval),
    Activation("celu", "x if x > 0 else alpha·(exp(x/alpha) − 1)", F.celu, nn.CELU, "Barron 2017, CELUs",
               {"alpha": 1.0}, kinks=(0.0,), saturation_of=_celu_interval),
    Activation("selu", "1.0507·(x if x > 0 else 1.6733·(exp(x) − 1))", F.selu, nn.SELU,
               "Klambauer et al. 2017, Self-Normalizing Neural Networks",
               saturation=(math.log(SATURATION_SLOPE), math.inf), kinks=(0.0,)),
    Activation("gelu", "x·Φ(x)", F.gelu, nn.GELU, "Hendrycks & Gimpel 2016, Gaussian Error Linear Units"),
    Activation("gelu_tanh", "x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))", partial(F.gelu, approximate="tanh"),
               partial(nn.GELU, approximate="tanh"), "Hendrycks & Gimpel 2016, Gaussian Error Linear Units"),
    Activation("silu", "x·sigmoid(x)", F.silu, nn.SiLU, "Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units"),
    Activation("mish", "x·tanh(ln(1 + exp(x)))", F.mish, nn.Mish, "Misra 2020, Mish"),
    Activation("hardswish", "x·min(max(x + 3, 0), 6)/6", F.hardswish, nn.Hardswish,
               "Howard et al. 2019, Searching for MobileNetV3", kinks=(-3.0, 3.0)),
    Activation("tanh", "tanh(x)", torch.tanh, nn.Tanh, "LeCun et al. 1998, Efficient BackProp",
               saturation=(-_TANH, _TANH)),
    Activation("hardtanh", "min(max(x, −1), 1)", F.hardtanh, nn.Hardtanh, "Collobert 2004, Large-Scale Learning",
               saturation=(-1.0, 1.0), kinks=(-1.0, 1.0)),
    Activation("arctan", "arctan(x)", torch.atan, partial(Elementwise, torch.atan),
               "the inverse tangent; no single source", saturation=(-_ARCTAN, _ARCTAN)),
    Activation("sigmoid", "1/(1 + exp(−x))", torch.sigmoid, nn.Sigmoid,
               "Rumelhart, Hinton & Williams 1986, Learning Representations by Back-propagating Errors",
               saturation=(-2 * _TANH, 2 * _TANH)),
    Activation("hardsigmoid", "min(max(x + 3, 0), 6)/6", _hardsigmoid, nn.Hardsigmoid,
               "Howard et al. 2019, Searching for MobileNetV3", saturation=(-3.0, 3.0), kinks=(-3.0, 3.0)),
    Activation("softplus", "ln(1 + exp(beta·x))/beta", partial(F.softplus, threshold=_EXACT),
               partial(nn.Softplus, threshold=_EXACT), "Dugas et al. 2001, Incorporating Second-Order Knowledge",
               {"beta": 1.0}, saturation_of=_softplus_interval),
    Activation("softsign", "x/(1 + |x|)", F.softsign, nn.Softsign, "Bergstra et al. 2009, Quadratic Polynomials",
               saturation=(-_SOFTSIGN, _SOFTSIGN), kinks=(0.0,)),
    Activation("sin", "sin(omega·x)", _sin, partial(Elementwise, _sin),
               "Sitzmann et al. 2020, Implicit Neural Representations", {"omega": 30.0}),
    Activation("erf", "erf(x)", torch.erf, partial(Elementwise, torch.erf),
               "Williams 1997, Computing with Infinite Networks", saturation=(-_ERF, _ERF)),
)}
# fmt: on
