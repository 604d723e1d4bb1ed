"""What a forecast comes to: the layers as theory sees them, their rows, and one plain sentence about them."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.initialize import Task
from initlab.prediction.expected_causes import expected_causes
from initlab.prediction.predict import answers, at_default, drawn_of, end_of, on_maps, phase_point
from initlab.report.findings import Network, Verdict
from initlab.report.findings.start import ENDS
from initlab.report.findings.trends import WARNS
from initlab.theory import FixedPoint, critical, default_critical
from initlab.theory.nodes import Branch, Inputs, Node, inputs_of, layers_of
from initlab.theory.read_module import describe

FLAT = 0.005
"""A factor per layer that is nearer to 1 than this is called none."""
NEARLY = 1e-3
"""|χ₁ − 1| below which a network of any depth that is trained sees no difference to criticality."""
ENDLESS = 10_000
"""Depths beyond are no limit."""


@dataclass(frozen=True)
class Outlook:
    """A forecast of one network.

    Attributes:
        frame: the rows of `predict`.
        nodes: the layers that theory was asked about; empty where it knows nothing of the model.
        point: the fixed point of a plain chain's hidden layers, else None.
        verdict: one plain sentence.
        critical_gain: the gain at which χ₁ = 1, NaN where there is none or the scheme has no gain.
        causes: what will keep it from training, by the rules that `diagnose` and the report go by.
    """

    frame: pd.DataFrame
    nodes: Sequence[Node]
    point: FixedPoint | None
    verdict: str
    critical_gain: float = math.nan
    causes: tuple[Verdict, ...] = ()


def outlook(
    module: nn.Module,
    tasks: Iterable[Task],
    inputs: Any,
    *,
    act: Any = None,
    classes: int | None = None,
    gain: float | str = "paper",
) -> Outlook:
    """Forecast a module and say what it comes to; arguments as in `predicted_rows`, `gain` as in `initialize_`.

    >>> import torch
    >>> from initlab.initialize import plan, request
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> outlook(net, plan(net, request("he_normal", act="relu")), torch.ones(4, 8), classes=3).verdict
    'critical: gradients keep their size; depth is no limit; the gain is the critical one, 1.41'
    """
    listed = list(tasks)
    record = None if act is None else activation(act)
    drawn = drawn_of(listed)
    nodes = describe(module, drawn, record) or []
    fed: Inputs = inputs_of(inputs, maps=on_maps(nodes), samples=1024)
    frame = answers(nodes, fed, classes)
    hidden = [layer for layer in layers_of(nodes) if layer.act is not None]
    record = record or next((layer.act for layer in hidden), None)
    point = phase_point(nodes, record) if record is not None else None
    best = _critical_gain(listed, point, record)
    causes = expected_causes(nodes, frame, drawn, _network(nodes, listed, record, gain)) if nodes else []
    verdict = _verdict(nodes, frame, point, record, best, {cause.name for cause in causes})
    return Outlook(frame, nodes, point, verdict, best, tuple(causes))


def _network(nodes: Sequence[Node], tasks: Sequence[Task], act: Activation | None, gain: float | str) -> Network:
    scheme = next((t.scheme.name for t in tasks if t.rule == "scheme" and t.scheme is not None), "")
    branches = any(isinstance(node, Branch) for node in nodes)
    normed = any(layer.fed_by == "norm" for layer in layers_of(nodes))
    return Network(
        act=act.name if act is not None else "",
        scheme=scheme,
        model="resmlp" if branches else "mlp",
        norm="some" if normed else "none",
        gain=str(gain),
        depth=sum(layer.act is not None for layer in layers_of(nodes)),
    )


def _critical_gain(tasks: Sequence[Task], point: FixedPoint | None, act: Activation | None) -> float:
    """The gain that would make σ_w critical at the biases there are; NaN where there is no such stable point."""
    if point is None or act is None or point.sigma_w == 0:
        return math.nan
    used = [t for t in tasks if t.rule == "scheme" and t.parameter.is_weight and t.role == "hidden" and t.gains]
    if not used or used[-1].scheme is None or used[-1].scheme.own_gain is None:
        return math.nan
    try:
        wanted = critical(act, sigma_b=point.sigma_b)
    except UserError:  # there is none: the verdict says so
        return math.nan
    return used[-1].gains[0] * wanted.sigma_w / point.sigma_w if wanted.stable else math.nan


def _verdict(
    nodes: Sequence[Node],
    frame: pd.DataFrame,
    point: FixedPoint | None,
    act: Activation | None,
    gain: float,
    causes: Collection[str] = (),
) -> str:
    if not nodes:
        return "theory has no answer: this model is no plain chain, no residual network of ours and no nn.Sequential"
    if (unanswered := _unanswered(nodes, frame)) is not None:
        return unanswered
    branches = [node for node in nodes if isinstance(node, Branch)]
    if branches:
        return _residual(branches, frame)
    names = [layer.name for layer in layers_of(nodes) if layer.act is not None]
    q, gradient = _of(frame, "q", names), _of(frame, "grad_mean_square", names)
    if len(q) and q[-1] == 0:
        return "nothing gets through: every preactivation is 0 whatever the input, so no two inputs differ" + (
            ", and no gradient reaches a hidden layer" if len(gradient) and not gradient.any() else ""
        )
    if len(names) == 1:
        return "one hidden layer: there is no depth in which signal or gradient could change"
    if point is None or act is None:
        return f"{_signal(q, False)}{_gradients(gradient, 'layer')}"
    gradients = _gradients(gradient, "layer")
    if point.kind == "infinite" and point.phase == "critical":
        return f"critical only in a limit that q grows to for ever: {gradients}; {_remedy(point, act, gain)[0]}"
    # What is off a point that repels leaves it by the same factor layer by layer, however critical the point.
    slow = point.kind != "repelling" and (point.phase == "critical" or abs(point.chi_1 - 1) < NEARLY)
    depth = f"{_depth(point, act, q)}{_against(end_of(point, act, float(q[0])), len(names), causes)}"
    parts = [f"{_phase(point)}: {_signal(q, slow)}{gradients}", depth]
    return "; ".join([*parts, *_remedy(point, act, gain)])


def _unanswered(nodes: Sequence[Node], frame: pd.DataFrame) -> str | None:
    """Say where theory's answers end, and why; None where they do not."""
    answered = set(frame.layer[frame.stat == "q"]) | set(frame.layer[frame.stat == "grad_mean_square"])
    layer = next((layer for layer in layers_of(nodes) if layer.name not in answered), None)
    if layer is None:
        return None
    before = frame[frame.stat == "q"].value
    if layer.answerable and len(before) and before.iloc[-1] > 1e200:
        return f"the signal explodes: q passes the largest number there is before {layer.name}"
    if layer.fed_by == "norm":
        why = f"{layer.name} is next to a norm, and a norm decides q whatever the weights are"
    elif not layer.answerable:
        why = f"the weights of {layer.name} are no independent draws of mean 0"
    else:
        why = f"{layer.name} is fed by a sum whose shortcut came through an activation, which is not Gaussian"
    some = f" from {layer.name} on" if answered else ""
    return f"theory has no answer{some}: {why}"


def _of(frame: pd.DataFrame, stat: str, names: Sequence[str]) -> np.ndarray:
    rows = frame[frame.stat == stat].set_index("layer").value
    return rows.reindex([name for name in names if name in rows.index]).to_numpy()


def _phase(point: FixedPoint) -> str:
    if point.phase == "critical":
        return {"half_stable": "critical, but half-stable", "repelling": "critical, but repelling"}.get(
            point.kind, "critical"
        )
    nearly = point.phase != "critical" and abs(point.chi_1 - 1) < NEARLY
    return f"all but critical ({point.phase})" if nearly else point.phase


def _signal(q: np.ndarray, slow: bool) -> str:
    """Say how the signal changes, where it does by more than a factor of ten; it dies or explodes beyond `WARNS`."""
    rise = _decades(q)
    if abs(rise) < 1 or len(q) < 2:
        return ""
    if slow:
        return f"q {'grows' if rise > 0 else 'fades'} by a power of depth ({factor(10**rise)} in all); "
    per = 10 ** (rise / (len(q) - 1))
    far = abs(rise) >= math.log10(WARNS)
    up, down = ("explodes", "dies") if far else ("grows", "shrinks")
    return f"the signal {up if rise > 0 else down} (q {factor(per)} per layer, {factor(10**rise)} in all); "


def _gradients(g: np.ndarray, what: str) -> str:
    """Say how the mean square of the gradient changes on its way back, in so many layers or blocks."""
    if not len(g):
        return "gradients are not known for this loss"
    spread = -_decades(g)
    per = 10 ** (spread / max(len(g) - 1, 1))
    if len(g) < 2 or abs(per - 1) < FLAT:
        return "gradients keep their size"
    return (
        f"gradients {'grow' if per > 1 else 'shrink'} {factor(per)} per {what}, {factor(10**spread)} over {len(g)} "
        + (f"{what}s")
    )


def _decades(x: np.ndarray) -> float:
    """log₁₀ of last over first; ±inf where one of them is 0 or out of reach."""
    if len(x) < 2:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        found = float(np.log10(x[-1]) - np.log10(x[0]))
    return 0.0 if math.isnan(found) else min(max(found, -300.0), 300.0)


def _depth(point: FixedPoint, act: Activation, q: np.ndarray) -> str:
    end = end_of(point, act, float(q[0])) if len(q) else point
    if end is not point:
        aim = f"goes to {end.q_star:.3g}" if end.kind != "infinite" else "grows for ever"
        leaves = f"from the first layer's {q[0]:.3g}, q does not tend to q* = {point.q_star:.3g} but slowly {aim}"
        return f"{leaves}, where χ₁ = {end.chi_1:.3f}: {_depth(end, act, q)}"
    depth = abs(point.trainable_depth)
    if point.kind == "repelling":
        return f"whatever is off q* = {point.q_star:.3g} leaves it, {factor(point.chi_q)} further per layer"
    if depth > ENDLESS:
        return "depth is no limit"
    return f"trains to about depth {max(depth, 1):.0f}"


def _against(end: FixedPoint, depth: int, causes: Collection[str]) -> str:
    """Compare the depth that correlations allow with that of the network, and with what its layers will measure."""
    limit = abs(end.trainable_depth)
    bad = ENDS & set(causes)
    if end.kind == "repelling":
        return ""
    if limit < depth:
        return f", and this network has {depth}" + ("" if bad else ", although no layer breaks a bound at step 0")
    if bad:
        return " by its correlations alone: what its layers measure ends sooner, as said below"
    return ""


def _remedy(point: FixedPoint, act: Activation, gain: float) -> list[str]:
    if point.kind != "infinite" and (point.phase == "critical" or abs(point.chi_1 - 1) < NEARLY):
        return [] if math.isnan(gain) else [f"the gain is the critical one, {gain:.3g}"]
    if at_default(act, point.sigma_w, point.sigma_b) is not None:
        return []
    if not math.isnan(gain):
        return [f"critical gain {gain:.2f}"]
    try:
        best = default_critical(act)
    except UserError:  # softplus: there is none
        return [f"{act.name} has no critical point"]
    return [f"critical at sigma_w {best.sigma_w:.3g}, sigma_b {best.sigma_b:.3g} (init=critical)"]


def _residual(branches: Sequence[Branch], frame: pd.DataFrame) -> str:
    names = [branch.layers[0].name for branch in branches]
    q, gradient = _of(frame, "q", names), _of(frame, "grad_mean_square", names)
    if len(q) < 2:
        return f"residual: one block; {_gradients(gradient, 'block')}"
    rise = _decades(q)
    per = 10 ** (rise / (len(q) - 1))
    said = (
        "the signal keeps its size"
        if abs(per - 1) < FLAT
        else (f"the signal grows {factor(per)} per block, {factor(10**rise)} over {len(q)} blocks")
    )
    worst = max(abs(rise), abs(_decades(gradient)) if len(gradient) else 0.0)
    end = (
        "both are in order at this depth"
        if worst < 1
        else "model.branch=inverse_sqrt_depth keeps both in order at any depth"
    )
    return f"residual: {said}; {_gradients(gradient, 'block')}; {end}"


def factor(x: float) -> str:
    """Say a factor: 1.1× near 1, 10^-7.3 far from it.

    >>> factor(1.0873), factor(60.0), factor(1e-7)
    ('1.09×', '10^1.8', '10^-7')
    """
    if 0.1 < x < 10:
        return f"{x:.3g}×"
    return f"10^{round(math.log10(x), 1):g}" if x > 0 and math.isfinite(x) else f"{x:g}×"
