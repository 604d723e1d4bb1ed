"""Rank a grid of networks by what theory says of each, before any is trained."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from initlab.activations import Activation, activation
from initlab.errors import Impossible
from initlab.initialize import plan, request
from initlab.prediction.predict import drawn_of, on_maps, phase_point, skeleton
from initlab.theory.describe import describe
from initlab.theory.forecast import Trace, flat, propagate
from initlab.theory.network import Inputs, Node

ALIKE = 0.9
"""Correlation of the two inputs that are alike; the other two have none."""

COLUMNS = (
    "act",
    "init",
    "depth",
    "score",
    "contrast",
    "gradient_range",
    "q",
    "phase",
    "chi_1",
    "xi_c",
    "trainable_depth",
    "reason",
)


def rank(
    act: Iterable[Any] | str,
    init: Iterable[Any] | str,
    depth: Iterable[int] | int,
    width: int | None = None,
    *,
    model: str = "mlp",
    input_shape: Sequence[int] = (784,),
    classes: int = 10,
    gain: float | str = "paper",
    sigma_b: float | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Forecast every cell of act × init × depth, and order them by how well signal and gradient come through.

    `contrast`: how much of the difference between alike inputs (correlation 0.9) and unrelated ones (0) is left in the
    last hidden layer, from 1 to 0: it falls like exp(−depth/ξ_c) in either phase. `gradient_range`: log₁₀ of the
    gradient's mean square in the first hidden layer over that in the last. The score puts them together,

        score = log₁₀ contrast − |gradient_range|/2

    0 at best; NaN where theory has no answer. `q` is the last hidden layer's; `reason` says why a cell cannot exist.

    Returns a frame, best first, with columns act, init, depth, score, contrast, gradient_range, q, phase, chi_1, xi_c,
    trainable_depth, reason.

    >>> rank("relu", ["glorot_normal", "he_normal"], 30).init.tolist()
    ['he_normal', 'glorot_normal']
    """
    rows = [
        _cell(activation(a), scheme, d, width, model, tuple(input_shape), classes, gain, sigma_b, options)
        for a in _listed(act)
        for scheme in _listed(init)
        for d in _listed(depth)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("score", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple, range, set)) else [values]


def _cell(
    act: Activation,
    init: Any,
    depth: int,
    width: int | None,
    model: str,
    shape: tuple[int, ...],
    classes: int,
    gain: float | str,
    sigma_b: float | None,
    options: dict[str, Any],
) -> tuple[Any, ...]:
    name = init if isinstance(init, str) else init.name
    module = skeleton(model, depth, width, shape, classes, tuple(sorted(options.items())))
    try:
        tasks = plan(module, request(init, act=act, gain=gain, sigma_b=sigma_b))
    except Impossible as reason:
        nothing = [math.nan] * 4
        return (act.name, name, depth, *nothing, None, math.nan, math.nan, math.nan, str(reason))
    nodes = describe(module, drawn_of(tasks), act) or []
    point = phase_point(nodes, act)
    phase = (point.phase, point.chi_1, point.xi_c, point.trainable_depth) if point else (None, *[math.nan] * 3)
    return (act.name, name, depth, *_scores(nodes, shape, classes), *phase, None)


def _scores(nodes: Sequence[Node], shape: tuple[int, ...], classes: int) -> tuple[float, float, float, float]:
    positions = shape[1:] if on_maps(nodes) else ()
    ones = np.ones((1, *positions))
    products = np.array([0.0, ALIKE]).reshape(-1, *[1] * len(positions)) * ones
    inputs = Inputs(np.ones((3, *positions)), products, np.array([[0, 1], [0, 2]]))
    hidden = [trace for layer, trace in flat(propagate(nodes, inputs, classes)) if layer.act is not None]
    if not hidden or hidden[-1].q is None or not math.isfinite(hidden[0].gradient):
        return math.nan, math.nan, math.nan, math.nan
    first, last, q = hidden[0], hidden[-1], hidden[-1].q
    contrast = _contrast(last)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = float(np.log10(first.gradient) - np.log10(last.gradient))
        score = float(np.log10(contrast) - abs(spread) / 2)
    return score, contrast, spread, float(q.mean())


def _contrast(trace: Trace) -> float:
    if trace.products is None or trace.q is None or not np.all(trace.q > 0):
        return math.nan
    unrelated, alike = trace.products.reshape(2, -1).sum(axis=1) / trace.q[0].sum()
    return float(abs(alike - unrelated) / ALIKE)
