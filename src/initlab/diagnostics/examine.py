"""Measure what an initialization does to any module: one forward and one backward pass that change nothing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from initlab.diagnostics.jacobian import choose_jacobians, estimated_samples, write_jacobians
from initlab.diagnostics.stats import input_correlation
from initlab.diagnostics.trace.hooks import ModuleTracer
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import Call, StreamSum, second_moment
from initlab.diagnostics.weight_facts import WeightFacts, is_deterministic_pattern
from initlab.diagnostics.weights import Weight, weights_of
from initlab.errors import UserError
from initlab.inspection.batch import (
    Batch,
    batch_size,
    call_arguments,
    clone_tensors,
    flatten_tensors,
    unwrap_module,
    vocabulary_size,
)
from initlab.inspection.exceptions import call_user_code
from initlab.inspection.loss import Objective, compute_loss
from initlab.inspection.restore import count_unused_norms, eager_with_gradients, in_float64, preserve_module
from initlab.inspection.shape_errors import explain_shape_errors
from initlab.records.columns import LAYER_COLUMNS
from initlab.system.random_streams import check_seed, seed_global_state

NETWORK, INPUT = "(model)", "(input)"
"""Names in the column `layer` for the network as a whole and for its inputs; their index is 0."""

JACOBIAN_SAMPLES, JACOBIAN_BUDGET = 4, 1e10
"""Samples whose Jacobians are computed, and multiplications that they may cost unless they are asked for."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a network: the rows, and the facts that findings rest on.

    Attributes:
        frame: columns step, layer, index, stat, value, source.
        calls: one record per call of a layer, in order of execution; weights that took no part come last.
        sums: places where a branch joins a stream, in order.
        loss: the value of the loss; None if there was none.
        objective: the name of the loss that the gradients are of.
        classes: number of classes of a cross-entropy.
        inputs: moments of the batch.
        unused_norms: batch norms in evaluation mode that have seen no batch, and so change no signal.
    """

    frame: pd.DataFrame
    calls: list[Call]
    sums: list[StreamSum]
    loss: float | None = None
    objective: str = ""
    classes: int | None = None
    inputs: dict[str, float] = field(default_factory=dict)
    unused_norms: int = 0


def examine(
    module: nn.Module,
    batch: Batch,
    targets: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    classes: int | None = None,
    jacobian: bool | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measure every layer of any module on one batch: the rows of `initlab.diagnose`, and the facts of its findings.

    Arguments are those of `initlab.diagnose`. An error of the module's own `forward` is raised as it is, also that of a
    batch that it cannot take: `initlab.inspection.shape_errors` explains it.

    Raises:
        UserError: a module without parameters, lazy or meta parameters, targets that do not fit.

    >>> examine(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4)).calls[0].activation.name
    'tanh'
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"diagnose needs a torch.nn.Module, and this is {type(module).__name__}.")
    module = unwrap_module(module)
    with preserve_module(module), eager_with_gradients():
        passes = _Passes(module, batch, check_seed(seed))

        def objective_of(output: Any, double: bool) -> Objective | None:
            labels, tokens = clone_tensors(targets, double), vocabulary_size(passes.tensors)
            return compute_loss(output, targets=labels, loss=loss, classes=classes, tokens=tokens, seed=passes.seed)

        recorder, objective = passes.measure(objective_of)
        calls = recorder.calls
        if passes.weights and any(_may_underflow(call, name) for call in calls for name in _UNDERFLOW_STATS):
            # float64 tells a signal or gradient of 0 from one that is too small for its precision.
            precision = passes.weights[0].tensor.dtype
            with in_float64(module), suppress(RuntimeError, TypeError, NotImplementedError):  # one precision only
                _replace_underflowed(calls, passes.measure(objective_of, precision)[0].calls)
        if jacobian is not False:
            _copy_jacobians(calls, passes, None if jacobian else JACOBIAN_BUDGET)
        _measure_weights(recorder)
        value = None if objective is None else float(objective.loss.detach())
        moments = _input_moments(passes.tensors, passes.size)
    name, count = ("", None) if objective is None else (objective.name, objective.classes)
    network = {} if value is None else {"loss": value}
    if count is not None:
        network["ln_classes"] = float(torch.tensor(float(count)).log())
    rows = [(NETWORK, 0, network), (INPUT, 0, moments), *((call.layer, call.index, call.stats) for call in calls)]
    unused = count_unused_norms(module)
    return Diagnosis(_frame_of_rows(rows), calls, recorder.sums, value, name, count, moments, unused)


class _Passes:
    """Recorded passes of a module on one batch, each with the same random numbers."""

    def __init__(self, module: nn.Module, batch: Batch, seed: int):
        self.module, self.batch, self.seed = module, batch, seed
        self.weights = weights_of(module)
        self.inputs = call_arguments(batch)
        self.tensors = flatten_tensors(self.inputs)
        self.size = batch_size(module, self.tensors)

    def measure(
        self, objective_of: Callable[[Any, bool], Objective | None], float64_for: torch.dtype | None = None
    ) -> tuple[PassRecorder, Objective | None]:
        """Run forward and backward in the module's own precision, or in float64 in place of another dtype."""
        double = float64_for is not None
        seed_global_state("diagnosed passes", self.seed)
        learned = [p.requires_grad_() for p in self.module.parameters() if p.is_floating_point()]
        args, kwargs = (clone_tensors(part, double) for part in self.inputs)
        recorder = PassRecorder(self.weights, self.size, flatten_tensors((args, kwargs)), float64_for)
        with recorder.gradient_hooks:
            with ModuleTracer(self.module, recorder):
                output = call_user_code(self.module, *args, **kwargs)
            objective = objective_of(output, double)
            if objective is not None and objective.loss.requires_grad:
                gradients = torch.autograd.grad(objective.loss, learned, allow_unused=True)
                gradient_of = dict(zip(map(id, learned), gradients, strict=True))
                for call, weight in recorder.first_calls():
                    if (gradient := gradient_of.get(id(weight.tensor))) is not None:
                        call.measure_gradient(gradient)
        return recorder, objective

    def jacobians(self, budget: float | None, samples: int = JACOBIAN_SAMPLES) -> list[Call]:
        """Run a few samples forward, and return the calls with the Jacobians that the budget allows."""
        mixes = any(isinstance(m, BATCH_NORMS) and m.training for m in self.module.modules())
        batch = self.batch
        if mixes or not (isinstance(batch, Tensor) and batch.is_floating_point() and len(batch) == self.size):
            return []  # no single sample to differentiate
        inputs = batch[:samples].detach().clone().requires_grad_()
        seed_global_state("diagnosed passes", self.seed)
        recorder = PassRecorder(self.weights, len(inputs), [], keep=True)
        with ModuleTracer(self.module, recorder):
            call_user_code(self.module, inputs.clone())  # a copy: the first operation may work in place
        exact, estimated = choose_jacobians(recorder.calls, len(inputs), JACOBIAN_SAMPLES, budget)
        write_jacobians(recorder.calls, recorder.kept or {}, inputs, exact, estimated)
        return recorder.calls


def _input_moments(tensors: Sequence[Tensor], size: int) -> dict[str, float]:
    """Return mean, std, q and c of the first floating tensor that a module is fed; {} if there is none."""
    first = next((t for t in tensors if t.is_floating_point() and t.numel()), None)
    if first is None:
        return {}
    x = first.detach().double()
    moments = {"mean": float(x.mean()), "std": float(x.std(correction=0)), "q": second_moment(x)}
    if len(x) == size and size > 1:
        moments["c"] = float(input_correlation(x.reshape(1, size, -1))[0])
    return moments


def _frame_of_rows(layers: Sequence[tuple[str, int, dict[str, float]]]) -> pd.DataFrame:
    rows = [(0, layer, index, *stat, "measured") for layer, index, stats in layers for stat in stats.items()]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def _measure_weights(recorder: PassRecorder) -> None:
    weights = recorder.first_calls()
    called = {weight.name for _, weight in weights}
    for weight in recorder.weights:
        if weight.name not in called and weight.kind != "unknown":
            call = recorder.add_call(weight.layer, weight, {})
            call.ran = False
            weights.append((call, weight))
    groups: dict[str, list[tuple[Call, Weight, WeightFacts]]] = {}
    for call, weight in weights:
        call.facts = facts = call.measure_weight(weight)
        if not facts.constant and not facts.tied and facts.elements >= 4:
            groups.setdefault(facts.key, []).append((call, weight, facts))
    for group in groups.values():
        _, weight, first = group[0]
        # A scheme that draws nothing (an identity, a sinusoid) gives equal layers on purpose.
        if len(group) > 1 and not first.patterned and not is_deterministic_pattern(weight):
            for call, _, facts in group:
                call.facts = replace(facts, twins=tuple(twin.layer for twin, _, _ in group))


_UNDERFLOW_STATS = {
    "q": ("underflow", "mean", "std", "c", "dead_fraction", "saturated_fraction"),
    "grad_mean_square": ("grad_underflow",),
}
"""Statistic that is 0 or inexact where a tensor underflows -> the count of lost entries, and what else is inexact."""


def _may_underflow(call: Call, name: str) -> bool:
    return call.stats.get(name) == 0 or call.stats.get(_UNDERFLOW_STATS[name][0], 0) > 0


def _replace_underflowed(calls: Sequence[Call], precise: Sequence[Call]) -> None:
    for call, other in zip(calls, precise, strict=False):
        for name, dependent in _UNDERFLOW_STATS.items():
            if call.layer == other.layer and _may_underflow(call, name) and other.stats.get(name, 0) > 0:
                call.stats.update({key: other.stats[key] for key in (name, *dependent) if key in other.stats})


def jacobians(module: nn.Module, batch: Batch, *, budget: float = JACOBIAN_BUDGET, seed: int = 0) -> pd.DataFrame:
    """Return the rows `jacobian_*` of `diagnose` alone: those of the first layers, as far as the budget goes.

    Args:
        module: any module.
        batch: as in `diagnose`.
        budget: multiplications that they may cost.
        seed: of the random numbers that the module draws.

    Returns:
        A frame with columns step, layer, index, stat, value, source; empty where no single sample can be
        differentiated: under batch normalization in training mode, or for integers such as tokens.

    >>> jacobians(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(4, 8)).stat.tolist()[:3]
    ['jacobian_mean', 'jacobian_var', 'jacobian_max']
    """
    module, seed = unwrap_module(module), check_seed(seed)
    with explain_shape_errors("the module", module, batch), preserve_module(module), eager_with_gradients():
        calls = _Passes(module, batch, seed).jacobians(budget)
    return _frame_of_rows([(call.layer, call.index, _jacobian_stats(call)) for call in calls])


def _copy_jacobians(calls: Sequence[Call], passes: _Passes, budget: float | None) -> None:
    exact, estimated = choose_jacobians(calls, passes.size, JACOBIAN_SAMPLES, budget)
    if exact or estimated:
        samples = estimated_samples(calls, passes.size, JACOBIAN_SAMPLES) if estimated else JACOBIAN_SAMPLES
        for call, other in zip(calls, passes.jacobians(budget, samples), strict=False):
            if call.layer == other.layer:
                call.stats.update(_jacobian_stats(other))


def _jacobian_stats(call: Call) -> dict[str, float]:
    return {name: value for name, value in call.stats.items() if name.startswith("jacobian_")}
