"""Predict before a weight is drawn: a network, a scheme and an activation in, one row per layer and statistic out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.initialize import FillTask, plan, request
from initlab.models import build
from initlab.schemes import Law
from initlab.theory import Critical, FixedPoint, default_critical, fixed_point
from initlab.theory.nodes import InputProducts, LayerNode, Node, layer_nodes, measure_inputs, standard_inputs
from initlab.theory.propagation import COLUMNS, forecast
from initlab.theory.read_module import UNKNOWN_LAW, LayerLaw, hidden_sigmas, read_module

CENTRED = ("delta_orthogonal", "critical_orthogonal")
"""Schemes that fill the centre tap of a convolution alone."""
MAX_SAMPLES = 1024
"""Inputs of a batch that a forecast looks at, each by itself."""
MIRRORED = ("looks_linear",)
"""Schemes whose elements repeat each other, so that sums over inputs are not Gaussian with the promised variance."""


def predict(
    act: Any,
    init: Any,
    depth: int | None = None,
    width: int | Sequence[int] | None = None,
    *,
    model: str = "mlp",
    input_shape: Sequence[int] = (784,),
    classes: int = 10,
    gain: float | str = "paper",
    sigma_b: float | None = None,
    parameters: Mapping[str, Any] | None = None,
    inputs: Any = None,
    second_moment: float = 1.0,
    correlation: float = 0.0,
    batch: int = 128,
    **options: Any,
) -> pd.DataFrame:
    """Predict what each layer will measure at step 0, from the scheme's promised variances and real fans.

    Args:
        act: activation by name, record or callable.
        init: scheme by name, alias or record; gain, sigma_b and parameters are those of `initialize_`.
        depth, width, model, options: the network, as in `models.build`.
        input_shape: shape of one sample; `classes`: outputs.
        inputs: a batch [B, *input_shape] to read second moments and correlations off; without one, every sample has
            `second_moment`, and every two the `correlation`.
        batch: samples that the loss averages over (with `inputs`, their number).

    Returns:
        A frame with columns step (0), layer, index, stat, value, source (predicted), empty where theory has no answer.
        Its `attrs`, for plain chains of layers: sigma_w and sigma_b of the hidden layers, q_star, kind, phase, chi_1,
        xi_c and trainable_depth (about 6 ξ_c).

    Raises:
        UserError: a name, key or value that cannot be; `Impossible`: the scheme cannot fill this network.

    >>> frame = predict("relu", "he_normal", depth=3, width=64)
    >>> frame[frame.stat == "q"].value.round(6).tolist()
    [2.0, 2.0, 2.0, 2.0]
    >>> frame.attrs["phase"], frame.attrs["kind"]
    ('critical', 'any')
    """
    record = activation(act)
    shape = tuple(input_shape) if inputs is None else tuple(torch.as_tensor(inputs).shape[1:])
    own = tuple(sorted((name, _hashable(value)) for name, value in options.items()))
    module = build_on_meta(model, _hashable(depth), _hashable(width), shape, classes, own)
    tasks = plan(module, request(init, act=record, gain=gain, sigma_b=sigma_b, parameters=parameters))
    nodes = read_module(module, layer_laws(tasks), record)
    fed = _forecast_inputs(nodes, inputs, shape, second_moment, correlation, batch)
    frame = forecast_known(nodes, fed, classes)
    point = hidden_fixed_point(nodes, record)
    if point is not None:
        names = ("sigma_w", "sigma_b", "q_star", "kind", "phase", "chi_1", "xi_c", "trainable_depth")
        frame.attrs.update({name: getattr(point, name) for name in names})
    return frame


def predicted_rows(
    module: nn.Module, tasks: Iterable[FillTask], inputs: Any, *, act: Any = None, classes: int | None = None
) -> pd.DataFrame:
    """Predict the rows of a module at hand: `tasks` from `initialize.plan`, `inputs` a batch that it will be fed.

    Arguments: `act`: the activation of a network of ours (read from the module if left out); `classes`: outputs, for
    gradients of softmax cross-entropy. Returns the frame of `predict`, empty where theory has no answer; its `attrs`
    hold trainable_depth alone, of where this batch's signal ends.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> frame = predicted_rows(net, plan(net, request("he_normal", act="relu")), torch.ones(4, 8), classes=3)
    >>> frame.stat.unique().tolist()[:3], len(frame.layer.unique())
    (['q', 'mean', 'std'], 2)
    """
    record = None if act is None else activation(act)
    nodes = read_module(module, layer_laws(tasks), record)
    frame = forecast_known(nodes, measure_inputs(inputs, maps=reads_maps(nodes or ()), samples=MAX_SAMPLES), classes)
    point = None if record is None else hidden_fixed_point(nodes, record)
    q = frame.value[frame.stat == "q"]
    if record is not None and point is not None and len(q):
        frame.attrs["trainable_depth"] = abs(fixed_point_from(point, record, float(q.iloc[0])).trainable_depth)
    return frame


def forecast_known(nodes: Sequence[Node] | None, inputs: InputProducts, classes: int | None) -> pd.DataFrame:
    """Forecast what theory has an answer for; a signal that passes the largest float is inf, and says so as such."""
    if not nodes:
        return pd.DataFrame(columns=list(COLUMNS))
    with np.errstate(all="ignore"):
        frame = forecast(nodes, inputs, classes)
    return frame[frame.value.notna()].reset_index(drop=True)


def layer_laws(tasks: Iterable[FillTask]) -> dict[str, LayerLaw]:
    """Say of each layer how its weight and bias are drawn, from what the tasks promise.

    >>> layer_laws(plan(nn.Linear(4, 4), request("orthogonal")))[""].orthogonal
    True
    """
    listed = list(tasks)
    biases = {task.parameter.layer: _bias_variance(task) for task in listed if task.parameter.kind == "bias"}
    return {
        task.parameter.layer: _layer_law(task, biases.get(task.parameter.layer, 0.0))
        for task in listed
        if task.parameter.is_weight
    }


def _bias_variance(task: FillTask) -> float:
    found = task.promised_laws()
    if len(found) != 1 or found[0].mean != 0:
        return math.nan
    return found[0].variance


def _layer_law(task: FillTask, bias_variance: float) -> LayerLaw:
    found = task.promised_laws()
    if len(found) != 1 or task.scheme is None or not math.isfinite(bias_variance):
        return UNKNOWN_LAW
    law = found[0]
    return LayerLaw(
        law.variance,
        law.mean,
        bias_variance,
        orthogonal=law.orthogonal is not None,
        centred=task.scheme.name in CENTRED and task.parameter.kind == "conv",
        known=_is_random(law) and task.scheme.name not in MIRRORED,
    )


def _is_random(law: Law) -> bool:
    return not law.deterministic or (law.mean == 0 and law.variance == 0)


@lru_cache(maxsize=64)
def build_on_meta(
    model: str,
    depth: int | None,
    width: int | tuple[int, ...] | None,
    shape: tuple[int, ...],
    classes: int,
    options: tuple[tuple[str, Any], ...] = (),
) -> nn.Module:
    """Build a network without memory for its weights: names and shapes are all that a prediction needs.

    >>> build_on_meta("mlp", 1, 2, (3,), 2).readout.weight.is_meta
    True
    """
    with torch.device("meta"):
        return build(model, depth=depth, width=width, input_shape=shape, classes=classes, **dict(options))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else value


def hidden_fixed_point(nodes: Sequence[Node] | None, act: Activation) -> FixedPoint | None:
    """Return the fixed point of a plain chain's hidden layers, or None."""
    law = hidden_sigmas(nodes) if nodes else None
    return None if law is None else _cached_fixed_point(act, *law)


@lru_cache(maxsize=4096)
def _cached_fixed_point(act: Activation, sigma_w: float, sigma_b: float) -> FixedPoint | None:
    try:
        with np.errstate(all="ignore"):  # far out, q passes the largest float
            return fixed_point(act, sigma_w, sigma_b, start=_search_start(act, sigma_w, sigma_b))
    except UserError:  # φ jumps or cannot be integrated: the layers' rows, if any, stand without a phase
        return None


def _search_start(act: Activation, sigma_w: float, sigma_b: float) -> float:
    """Where to look for a fixed point: at the one that `init=critical` means, if these are its σ_w and σ_b, else at 1.

    A half-stable point is not always where q = 1 leads: next to GELU's lies a stable one (see `outlook`).
    """
    best = default_critical_at(act, sigma_w, sigma_b)
    return best.q_star if best is not None and best.kind == "half_stable" else 1.0


def fixed_point_from(point: FixedPoint, act: Activation, q: float) -> FixedPoint:
    """Return where a signal ends whose second moment is `q` in the first layer: elsewhere than at a half-stable point.

    >>> near = _cached_fixed_point(activation("gelu"), (best := default_critical("gelu")).sigma_w, best.sigma_b)
    >>> round(near.q_star, 2), round(fixed_point_from(near, activation("gelu"), 2.1).q_star, 2)
    (3.56, 3.03)
    """
    if point.kind != "half_stable" or not 0 < q < math.inf:
        return point
    end = fixed_point(act, point.sigma_w, point.sigma_b, start=q)
    return point if math.isclose(end.q_star, point.q_star, rel_tol=1e-6) else end


def default_critical_at(act: Activation, sigma_w: float, sigma_b: float) -> Critical | None:
    """Return the point that `init=critical` chooses, if it has these σ_w and σ_b."""
    try:
        best = default_critical(act)
    except UserError:  # there is none to be at
        return None
    at = math.isclose(best.sigma_w, sigma_w, rel_tol=1e-6) and abs(best.sigma_b - sigma_b) < 1e-6
    return best if at else None


def reads_maps(nodes: Sequence[Node]) -> bool:
    """Say whether the first layer reads its input position by position.

    >>> reads_maps([LayerNode("a", 1, 1, 1.0)])
    False
    """
    first = next(iter(layer_nodes(nodes)), None)
    return isinstance(first, LayerNode) and first.taps is not None


def _forecast_inputs(
    nodes: Sequence[Node] | None,
    data: Any,
    shape: tuple[int, ...],
    second_moment: float,
    correlation: float,
    batch: int,
) -> InputProducts:
    maps = reads_maps(nodes or ())
    if data is not None:
        return measure_inputs(data, maps=maps, samples=MAX_SAMPLES)
    flat = standard_inputs(second_moment, correlation, batch)
    if not maps:
        return flat
    ones = np.ones((1, *shape[1:]))
    squares, products = (x.reshape(-1, *[1] * (ones.ndim - 1)) * ones for x in (flat.squares, flat.products))
    return InputProducts(squares, products, flat.pairs, flat.batch)
