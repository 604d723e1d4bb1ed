"""A forecast in words: the nodes that theory followed, their rows, and one plain sentence about them."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.initialize import FillTask
from initlab.prediction.expected_causes import expected_causes
from initlab.prediction.predict import (
    batch_inputs,
    default_critical_at,
    fixed_point_from,
    forecast_module,
    hidden_fixed_point,
    layer_laws,
)
from initlab.report.findings import Finding, NetworkInfo
from initlab.report.findings.start import DEPTH_LIMITING_CAUSES
from initlab.report.findings.trends import WARNING_FACTOR
from initlab.theory import FixedPoint, critical, default_critical
from initlab.theory.nodes import BranchNode, Node, layer_nodes

UNCHANGED_MARGIN = 0.005
"""|factor per layer − 1| below which nothing changes."""
NEAR_CRITICAL = 1e-3
"""|χ₁ − 1| below which no network of a depth that is trained differs from a critical one."""
UNLIMITED_DEPTH = 10_000
"""Depths beyond are no limit."""


@dataclass(frozen=True)
class NetworkForecast:
    """A forecast of one network.

    Attributes:
        frame: the rows of `predict`.
        nodes: the network as theory reads it; empty where it has no answer for the model.
        point: the fixed point of a plain chain's hidden layers, else None.
        verdict: one plain sentence.
        critical_gain: the gain at which χ₁ = 1, NaN where there is none or the scheme has no gain.
        causes: what will keep it from training, by the rules of `diagnose` and the report.
    """

    frame: pd.DataFrame
    nodes: Sequence[Node]
    point: FixedPoint | None
    verdict: str
    critical_gain: float = math.nan
    causes: tuple[Finding, ...] = ()


def forecast_network(
    module: nn.Module,
    tasks: Iterable[FillTask],
    inputs: Any,
    *,
    act: Any = None,
    classes: int | None = None,
    gain: float | str = "paper",
) -> NetworkForecast:
    """Forecast a module, with one sentence and the causes that will keep it from training.

    Args:
        module: the network.
        tasks: what `initialize.plan` returns for it.
        inputs: a batch that it will be fed.
        act: the activation of a network of a family of ours; read from the module if left out.
        classes: number of outputs, for gradients of softmax cross-entropy.
        gain: as in `initialize_`.

    >>> import torch
    >>> from initlab.initialize import plan, request
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> forecast_network(net, plan(net, request("he_normal", act="relu")), torch.ones(4, 8), classes=3).verdict
    'critical: gradients keep their size; depth is no limit; the gain is the critical one, 1.41'
    """
    tasks = list(tasks)
    laws = layer_laws(tasks)
    record = None if act is None else activation(act)
    nodes, frame = forecast_module(module, laws, batch_inputs(inputs), record, classes)
    record = record or next((layer.act for layer in layer_nodes(nodes) if layer.act is not None), None)
    point = hidden_fixed_point(nodes, record) if record is not None else None
    best = _critical_gain(tasks, point, record)
    causes = expected_causes(nodes, frame, laws, _finding_network(nodes, tasks, record, gain)) if nodes else []
    verdict = _forecast_sentence(nodes, frame, point, record, best, {cause.name for cause in causes})
    return NetworkForecast(frame, nodes, point, verdict, best, tuple(causes))


def _finding_network(
    nodes: Sequence[Node], tasks: Sequence[FillTask], act: Activation | None, gain: float | str
) -> NetworkInfo:
    scheme = next((t.scheme.name for t in tasks if t.rule == "scheme" and t.scheme is not None), "")
    branches = any(isinstance(node, BranchNode) for node in nodes)
    normed = any(layer.fed_by == "norm" for layer in layer_nodes(nodes))
    return NetworkInfo(
        act=act.name if act is not None else "",
        scheme=scheme,
        model="resmlp" if branches else "mlp",
        norm="some" if normed else "none",
        gain=str(gain),
        depth=sum(layer.act is not None for layer in layer_nodes(nodes)),
    )


def _critical_gain(tasks: Sequence[FillTask], point: FixedPoint | None, act: Activation | None) -> float:
    """Return the gain at which σ_w would be critical at the present σ_b; NaN where there is no such stable point."""
    if point is None or act is None or point.sigma_w == 0:
        return math.nan
    used = [t for t in tasks if t.rule == "scheme" and t.parameter.is_weight and t.role == "hidden" and t.gains]
    if not used or used[-1].scheme is None or used[-1].scheme.own_gain is None:
        return math.nan
    try:
        best = critical(act, sigma_b=point.sigma_b)
    except UserError:  # there is none
        return math.nan
    return used[-1].gains[0] * best.sigma_w / point.sigma_w if best.stable else math.nan


def _forecast_sentence(
    nodes: Sequence[Node],
    frame: pd.DataFrame,
    point: FixedPoint | None,
    act: Activation | None,
    gain: float,
    causes: Collection[str] = (),
) -> str:
    if not nodes:
        return (
            "theory has no answer: this model is no plain chain, no residual network of initlab's and no nn.Sequential"
        )
    if (unanswered := _where_answers_end(nodes, frame)) is not None:
        return unanswered
    branches = [node for node in nodes if isinstance(node, BranchNode)]
    if branches:
        return _residual_sentence(branches, frame)
    names = [layer.name for layer in layer_nodes(nodes) if layer.act is not None]
    q, gradient = _stat_values(frame, "q", names), _stat_values(frame, "grad_mean_square", names)
    if len(q) and q[-1] == 0:
        return "nothing gets through: every preactivation is 0 for every input, so no two inputs differ" + (
            ", and no gradient reaches a hidden layer" if len(gradient) and not gradient.any() else ""
        )
    if len(names) == 1:
        return "one hidden layer: there is no depth in which signal or gradient could change"
    if point is None or act is None:
        return f"{_signal_words(q, False)}{_gradient_words(gradient, 'layer')}"
    gradients = _gradient_words(gradient, "layer")
    if point.kind == "infinite" and point.phase == "critical":
        return (
            f"critical only in the limit to which q grows without bound: {gradients}; {_remedies(point, act, gain)[0]}"
        )
    # A signal off a point that repels moves away by the same factor in every layer, however critical the point is.
    slow = point.kind != "repelling" and _is_near_critical(point)
    limit = _compare_depths(fixed_point_from(point, act, float(q[0])), len(names), causes)
    parts = [f"{_phase_words(point)}: {_signal_words(q, slow)}{gradients}", f"{_depth_words(point, act, q)}{limit}"]
    return "; ".join([*parts, *_remedies(point, act, gain)])


def _is_near_critical(point: FixedPoint) -> bool:
    return point.phase == "critical" or abs(point.chi_1 - 1) < NEAR_CRITICAL


def _where_answers_end(nodes: Sequence[Node], frame: pd.DataFrame) -> str | None:
    """Return where theory's answers end, and why; None where they do not."""
    answered = set(frame.layer[frame.stat == "q"]) | set(frame.layer[frame.stat == "grad_mean_square"])
    layer = next((layer for layer in layer_nodes(nodes) if layer.name not in answered), None)
    if layer is None:
        return None
    before = frame[frame.stat == "q"].value
    if layer.answerable and len(before) and before.iloc[-1] > 1e200:
        return f"the signal explodes: q passes the largest float before {layer.name}"
    if layer.fed_by == "norm":
        why = f"{layer.name} is next to a norm, and a norm decides q independently of the weights"
    elif not layer.answerable:
        why = f"the weights of {layer.name} are no independent draws of mean 0"
    else:
        why = f"{layer.name} is fed by a sum whose shortcut came through an activation, which is not Gaussian"
    some = f" from {layer.name} on" if answered else ""
    return f"theory has no answer{some}: {why}"


def _stat_values(frame: pd.DataFrame, stat: str, names: Sequence[str]) -> np.ndarray:
    rows = frame[frame.stat == stat].set_index("layer").value
    return rows.reindex([name for name in names if name in rows.index]).to_numpy()


def _phase_words(point: FixedPoint) -> str:
    if point.phase == "critical":
        more = {"half_stable": ", but half-stable", "repelling": ", but repelling"}
        return f"critical{more.get(point.kind, '')}"
    return f"all but critical ({point.phase})" if _is_near_critical(point) else point.phase


def _signal_words(q: np.ndarray, slow: bool) -> str:
    """Describe a change of q by more than a factor of ten; beyond `WARNING_FACTOR` the signal dies or explodes."""
    decades, each = _change(q)
    if abs(decades) < 1:
        return ""
    if slow:
        return f"q {'grows' if decades > 0 else 'fades'} by a power of depth ({format_ratio(10**decades)} in all); "
    far = abs(decades) >= math.log10(WARNING_FACTOR)
    up, down = ("explodes", "dies") if far else ("grows", "shrinks")
    verb = up if decades > 0 else down
    return f"the signal {verb} (q {format_ratio(each)} per layer, {format_ratio(10**decades)} in all); "


def _gradient_words(g: np.ndarray, what: str) -> str:
    """Describe how the mean square of the gradient changes from the last layer or block to the first."""
    if not len(g):
        return "gradients are not known for this loss"
    decades, each = _change(g[::-1])
    if abs(each - 1) < UNCHANGED_MARGIN:
        return "gradients keep their size"
    verb = "grow" if each > 1 else "shrink"
    return f"gradients {verb} {format_ratio(each)} per {what}, {format_ratio(10**decades)} over {len(g)} {what}s"


def _change(x: np.ndarray) -> tuple[float, float]:
    """Return log₁₀ of last over first, within ±300, and the factor per step."""
    if len(x) < 2:
        return 0.0, 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = float(np.nan_to_num(np.clip(np.log10(x[-1]) - np.log10(x[0]), -300, 300)))
    return decades, 10 ** (decades / (len(x) - 1))


def _depth_words(point: FixedPoint, act: Activation, q: np.ndarray) -> str:
    end = fixed_point_from(point, act, float(q[0])) if len(q) else point
    if end is not point:
        aim = f"goes to {end.q_star:.3g}" if end.kind != "infinite" else "grows without bound"
        leaves = f"from the first layer's {q[0]:.3g}, q does not tend to q* = {point.q_star:.3g} but slowly {aim}"
        return f"{leaves}, where χ₁ = {end.chi_1:.3f}: {_depth_words(end, act, q)}"
    depth = abs(point.trainable_depth)
    if point.kind == "repelling":
        return f"a signal off q* = {point.q_star:.3g} moves away from it, {format_ratio(point.chi_q)} per layer"
    if depth > UNLIMITED_DEPTH:
        return "depth is no limit"
    return f"trains to about depth {max(depth, 1):.0f}"


def _compare_depths(end: FixedPoint, depth: int, causes: Collection[str]) -> str:
    """Compare the depth that correlations allow with that of the network, and with what its layers will measure."""
    limit = abs(end.trainable_depth)
    bad = DEPTH_LIMITING_CAUSES & set(causes)
    if end.kind == "repelling":
        return ""
    if limit < depth:
        return f", and this network has {depth}" + ("" if bad else ", although no layer breaks a bound at step 0")
    if bad:
        return " by its correlations alone: what its layers measure ends sooner, as said below"
    return ""


def _remedies(point: FixedPoint, act: Activation, gain: float) -> list[str]:
    if point.kind != "infinite" and _is_near_critical(point):
        return [] if math.isnan(gain) else [f"the gain is the critical one, {gain:.3g}"]
    if default_critical_at(act, point.sigma_w, point.sigma_b) is not None:
        return []
    if not math.isnan(gain):
        return [f"critical gain {gain:.2f}"]
    try:
        best = default_critical(act)
    except UserError:  # softplus: there is none
        return [f"{act.name} has no critical point"]
    return [f"critical at sigma_w {best.sigma_w:.3g}, sigma_b {best.sigma_b:.3g} (init=critical)"]


def _residual_sentence(branches: Sequence[BranchNode], frame: pd.DataFrame) -> str:
    names = [branch.layers[0].name for branch in branches]
    q, gradient = _stat_values(frame, "q", names), _stat_values(frame, "grad_mean_square", names)
    if len(q) < 2:
        return f"residual: one block; {_gradient_words(gradient, 'block')}"
    decades, each = _change(q)
    signal = f"the signal grows {format_ratio(each)} per block, {format_ratio(10**decades)} over {len(q)} blocks"
    if abs(each - 1) < UNCHANGED_MARGIN:
        signal = "the signal keeps its size"
    end = "model.branch=inverse_sqrt_depth keeps both in order at any depth"
    if max(abs(decades), abs(_change(gradient)[0])) < 1:
        end = "both are in order at this depth"
    return f"residual: {signal}; {_gradient_words(gradient, 'block')}; {end}"


def format_ratio(x: float) -> str:
    """Return a factor as text: 1.1× near 1, 10^-7.3 far from it.

    >>> format_ratio(1.0873), format_ratio(60.0), format_ratio(1e-7)
    ('1.09×', '10^1.8', '10^-7')
    """
    if 0.1 < x < 10:
        return f"{x:.3g}×"
    return f"10^{round(math.log10(x), 1):g}" if x > 0 and math.isfinite(x) else f"{x:g}×"
