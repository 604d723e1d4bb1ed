"""Activations shaped so that correlations between inputs survive depth: dks, tat."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from initlab.activations import Activation, Elementwise, activation
from initlab.errors import Impossible, UserError
from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.theory.quadrature import panel_nodes, phi_and_slope, phi_values

METHODS = ("dks", "tat")
CUTOFF, PANELS = 10.0, 40
MAX_BETA = 20.0
"""Largest |β| of a solution: beyond, φ would be evaluated far from its features."""


def _grid(act: Activation, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    # Gauss–Legendre panels over N(0, 1) whose edges include the points where αx + β meets a kink.
    breaks = [(kink - beta) / alpha for kink in act.kinks]
    edges = np.array(sorted([*np.linspace(-CUTOFF, CUTOFF, PANELS + 1), *(x for x in breaks if abs(x) < CUTOFF)]))
    x, weight = (column.ravel() for column in panel_nodes(edges))
    return x, weight * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _derivatives(act: Activation, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # φ, φ′ and φ″ at points.
    x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    phi = act(x)
    (slope,) = torch.autograd.grad(phi.sum(), x, create_graph=True)
    bend = torch.zeros_like(x)
    if slope.requires_grad:
        (bend,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
    return phi.detach().numpy(), slope.detach().numpy(), bend.detach().numpy()


def maps_at_one(act: Activation, alpha: float, beta: float, gamma: float, delta: float) -> dict[str, float]:
    """Return q, growth, mean, slope and bend of φ̂(x) = γ (φ(αx + β) + δ) for x ~ N(0, 1).

    Q(1) = E[φ̂²], Q′(1) = E[x φ̂ φ̂′], E[φ̂] (C(0) is its square over Q(1)), and at Q(1) = 1 C′(1) = E[φ̂′²] and
    C″(1) = E[φ̂″²], without what a jump of φ′ would add.

    >>> maps = maps_at_one(activation("linear"), 2.0, 0.0, 1.0, 0.0)
    >>> {key: abs(round(value, 6)) for key, value in maps.items()}
    {'q': 4.0, 'growth': 4.0, 'mean': 0.0, 'slope': 4.0, 'bend': 0.0}
    """
    x, weight = _grid(act, alpha, beta)
    phi, slope, bend = _derivatives(act, alpha * x + beta)
    hat, first, second = gamma * (phi + delta), gamma * alpha * slope, gamma * alpha**2 * bend
    maps = {"q": hat**2, "growth": x * hat * first, "mean": hat, "slope": first**2, "bend": second**2}
    return {key: float((weight * values).sum()) for key, values in maps.items()}


def shaped_phi(
    x: Tensor, *, phi: Callable[..., Tensor], alpha: float, beta: float, gamma: float, delta: float
) -> Tensor:
    """Return γ (φ(α x + β) + δ).

    >>> shaped_phi(torch.zeros(1), phi=torch.tanh, alpha=1.0, beta=0.0, gamma=2.0, delta=1.0)
    tensor([2.])
    """
    return gamma * (phi(alpha * x + beta) + delta)


def _shaped_record(name: str, act: Activation, constants: dict[str, float]) -> Activation:
    inner: Any = partial(act.phi, **act.parameters)
    phi = partial(shaped_phi, phi=inner, **constants)  # type: ignore[arg-type]
    kinks = tuple((kink - constants["beta"]) / constants["alpha"] for kink in act.kinks)
    formula = " ".join(f"{key}={value:.6g}" for key, value in (*act.parameters.items(), *constants.items()))
    label = f"{name}_{act.name}({formula})"
    module = partial(_ShapedActivation, phi, label)
    return Activation(label, f"γ(φ(αx + β) + δ), {formula}", phi, module, name, kinks=kinks)


class _ShapedActivation(Elementwise):
    # Shows its constants, so that networks with different ones count as different architectures.
    def __init__(self, phi: Callable[..., Tensor], label: str):
        super().__init__(phi)
        self.label = label

    def extra_repr(self) -> str:
        return self.label


def shape(act: Any, method: str, depth: int, *, zeta: float = 1.5, tau: float = 0.3, eta: float = 0.9) -> Activation:
    """Return φ̂ = γ(φ(αx + β) + δ) whose C-map over `depth` layers meets the targets of DKS or TAT.

    Both ask for Q(1) = 1 and Q′(1) = 1. DKS: C(0) = 0 and C_f′(1) = zeta, so C′(1) = zeta^(1/depth) in each layer. TAT
    for smooth φ: C′(1) = 1 and C_f″(1) = tau, so C″(1) = tau/depth; for ReLU, leaky ReLU and PReLU it is the negative
    slope for which C_f(0) = eta, with √(2/(1 + a²)) in front. Weights are N(0, 1/n) or orthogonal, inputs of second
    moment 1. Source: Martens et al. 2021, "Rapid training of deep neural networks without skip connections or
    normalization layers using Deep Kernel Shaping"; Zhang, Botev & Martens 2022, "Deep Learning without Shortcuts:
    Shaping the Kernel with Tailored Rectifiers".

    Args:
        act: activation by name, record or callable.
        method: dks or tat.
        depth: number of nonlinear layers.
        zeta: DKS's target C_f′(1).
        tau: TAT's target C_f″(1) for smooth φ.
        eta: TAT's target C_f(0) for ReLU, leaky ReLU and PReLU.

    Raises:
        UserError: another method, or no layer.
        Impossible: no such constants: φ is linear, or too smooth or too rough for the targets.

    >>> shape("relu", "tat", 10).name[:14]
    'tat_leaky_relu'
    """
    if method not in METHODS:
        raise UserError(f"method={method} must be {' or '.join(METHODS)}.")
    if depth < 1:
        raise UserError(f"depth={depth} must be at least 1: the number of nonlinear layers.")
    record = activation(act)
    if method == "tat" and record.rectifier:
        return _tailored_relu(depth, eta)
    if method == "tat" and (jumps := [kink for kink in record.kinks if _jumps(record, kink)]):
        jump = f"act={record.name} has one at {jumps[0]:g}"
        raise Impossible(f"init=tat needs a φ′ without jumps and {jump}: take relu or tanh.")
    return _shaped_record(method, record, dict(_constants(record, method, depth, zeta, tau)))


def _jumps(act: Activation, kink: float) -> bool:
    slopes = phi_and_slope(act, np.array([kink - 1e-6, kink + 1e-6]))[1]
    return bool(abs(slopes[1] - slopes[0]) > 1e-3)


@cache
def _constants(act: Activation, method: str, depth: int, zeta: float, tau: float) -> tuple[tuple[str, float], ...]:
    def gaps(unknowns: np.ndarray) -> list[float]:
        maps = maps_at_one(act, *_bounded(unknowns))
        if method == "dks":
            targets = [maps["mean"], maps["slope"] - zeta ** (1 / depth)]
        else:
            targets = [maps["slope"] - 1, maps["bend"] * depth - tau]
        return [maps["q"] - 1, maps["growth"] - 1, *targets]

    for start in _start_points(act):
        solution = scipy.optimize.root(gaps, start, tol=1e-11).x
        if max(map(abs, gaps(solution))) < 1e-6 and abs(solution[1]) < MAX_BETA:
            return tuple(zip(("alpha", "beta", "gamma", "delta"), _bounded(solution), strict=True))
    remedy = "take a smooth one such as softplus or tanh"
    raise Impossible(f"init={method} finds no α, β, γ, δ for act={act.name} over {depth} layers: {remedy}.")


def _bounded(unknowns: np.ndarray) -> tuple[float, float, float, float]:
    log_alpha, beta, log_gamma, delta = map(float, unknowns)
    return math.exp(min(max(log_alpha, -8.0), 3.0)), beta, math.exp(min(max(log_gamma, -9.0), 9.0)), delta


def _start_points(act: Activation) -> Iterator[np.ndarray]:
    # γ and δ start where the mean is 0 and the variance 1.
    for log_alpha, beta in product((-1.0, -1.7, -0.3, -2.5, 0.0), (0.0, 0.7, -0.7, 1.3, -1.3, 2.0)):
        x, weight = _grid(act, math.exp(log_alpha), beta)
        phi = phi_values(act, math.exp(log_alpha) * x + beta)
        mean = float((weight * phi).sum())
        variance = float((weight * (phi - mean) ** 2).sum())
        if variance > 1e-12:
            yield np.array([log_alpha, beta, -math.log(variance) / 2, -mean])


def leaky_c_map(c: float, slope: float) -> float:
    """Return the C-map of a leaky ReLU of this negative slope, scaled to keep variance 1.

    c + (1 − a)²/(π(1 + a²)) · (√(1 − c²) − c·arccos c). Source: Zhang, Botev & Martens 2022.

    >>> round(leaky_c_map(0.0, 0.0), 4), leaky_c_map(0.3, 1.0)
    (0.3183, 0.3)
    """
    bend = math.sqrt(max(1 - c * c, 0.0)) - c * math.acos(min(max(c, -1.0), 1.0))
    return c + (1 - slope) ** 2 / (math.pi * (1 + slope**2)) * bend


@cache
def _tailored_relu(depth: int, eta: float) -> Activation:
    def gap(slope: float) -> float:
        c = 0.0
        for _ in range(depth):
            c = leaky_c_map(c, slope)
        return c - eta

    # Over few layers C_f(0) of ReLU itself is below the target.
    slope = 0.0 if gap(0.0) <= 0 else float(scipy.optimize.brentq(gap, 0.0, 1.0, xtol=1e-14))
    leaky = activation(("leaky_relu", {"negative_slope": slope}))
    gamma = math.sqrt(2 / (1 + slope**2))
    return _shaped_record("tat", leaky, {"alpha": 1.0, "beta": 0.0, "gamma": gamma, "delta": 0.0})


def _reshape_rule(method: str) -> Callable[..., Activation]:
    def reshape(act: Activation, depth: int | None, **own: Any) -> Activation:
        if depth is None:
            raise Impossible(f"init={method} shapes the activation for a depth, and depth=null: give depth=10.")
        return shape(act, method, depth, **{key: own[key] for key in ("zeta", "tau", "eta") if key in own})

    return reshape


def _shape_refusal(context: ProcedureContext) -> str | None:
    branched = next((layer.name for layer in context.layers if layer.branch), None)
    if branched is not None:
        return f"shapes chains of layers, and {branched} stands in a residual branch: choose model=mlp or model=cnn"
    name = context.procedure.name
    if not context.act.name.startswith(f"{name}_"):
        return (
            f"changes the activation, and act={context.act.name} is not shaped: build the module with "
            f"act=initlab.procedures.shape({context.act.name!r}, {name!r}, depth) and give the same act here"
        )
    return None


def _mark_filled(context: ProcedureContext) -> None:
    context.changed |= {layer.parameter.name for layer in context.layers}


_NEEDS = ("structure", "architecture")

ROWS = (
    Procedure(
        "dks",
        "φ → γ(φ(αx + β) + δ): Q(1) = Q′(1) = 1, C(0) = 0, C_f′(1) = zeta over all layers; weights by `base`",
        _mark_filled,
        "Martens et al. 2021, Rapid training of deep neural networks without skip connections or normalization layers",
        2021,
        "scaled_orthogonal",
        {"base": "scaled_orthogonal", "zeta": 1.5},
        _NEEDS,
        possible=_shape_refusal,
        reshape=_reshape_rule("dks"),
    ),
    Procedure(
        "tat",
        "φ → γ(φ(αx + β) + δ): Q(1) = Q′(1) = C′(1) = 1, C_f″(1) = tau; ReLU: a leaky one with C_f(0) = eta",
        _mark_filled,
        "Zhang, Botev & Martens 2022, Deep Learning without Shortcuts: Shaping the Kernel with Tailored Rectifiers",
        2022,
        "scaled_orthogonal",
        {"base": "scaled_orthogonal", "tau": 0.3, "eta": 0.9},
        _NEEDS,
        possible=_shape_refusal,
        reshape=_reshape_rule("tat"),
    ),
)
