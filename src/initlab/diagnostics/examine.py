"""Measure what an initialization does to any module: one forward and one backward pass, everything left as found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from initlab.diagnostics.input_moments import moments_of
from initlab.diagnostics.jacobian import affordable, looked_at, write_jacobians
from initlab.diagnostics.trace.hooks import Listener
from initlab.diagnostics.trace.recorder import Scene
from initlab.diagnostics.trace.records import Call, Sum
from initlab.diagnostics.weight_facts import with_twins
from initlab.diagnostics.weights import Weight, weights_of
from initlab.errors import UserError
from initlab.inspection.batch import Batch, arguments, batch_size, copied, in_order, tokens_of, unwrapped
from initlab.inspection.exceptions import theirs
from initlab.inspection.loss import Objective, objective
from initlab.inspection.restore import as_found, idle_norms, in_double, undisturbed
from initlab.inspection.shape_errors import fitting
from initlab.system.random_streams import set_global, whole_seed

COLUMNS = ("step", "layer", "index", "stat", "value", "source")
NETWORK, INPUT = "(model)", "(input)"
"""Names in the column `layer` for the network as a whole and for what it is fed; their index is 0."""

SAMPLES, BUDGET = 4, 1e10
"""Samples whose Jacobians are looked at, and multiplications that they may cost unless they are asked for."""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a network: the rows, and the facts that verdicts rest on.

    Attributes:
        frame: columns step, layer, index, stat, value, source.
        calls: one record per call of a layer, in order of execution; weights that took no part come last.
        sums: places where a branch joins a stream, in order.
        objective: the loss that the gradients are of, by name, with its classes; None if there was none.
        loss: its value.
        batch: number of inputs.
        inputs: moments of the batch.
        idle_norms: batch norms in evaluation mode that have seen no batch, and so let signals through as they are.
    """

    frame: pd.DataFrame
    calls: list[Call]
    sums: list[Sum]
    loss: float | None = None
    objective: str = ""
    classes: int | None = None
    batch: int = 0
    inputs: dict[str, float] = field(default_factory=dict)
    idle_norms: int = 0


def examine(
    module: nn.Module,
    batch: Batch,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    classes: int | None = None,
    jacobian: bool | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measure every layer of any module on one batch: one row per layer and statistic, and the facts of verdicts.

    Layers are listed in order of execution; one that is called twice has two indices. A layer's preactivation is its
    output, or, where the module declares `weight_layers`, the input of the activation declared there. Activations are
    found whether they are modules or functions. Names of statistics: `initlab.diagnostics.STATS`, and
    `saturated_fraction`, `underflow` and `grad_underflow` (entries too small for their precision: where a whole layer
    is lost, its values are taken from a second pass in float64). Layer `(model)` has `loss` and, for cross-entropy,
    `ln_classes`, the loss of a network that knows nothing; `(input)` has the moments of the batch.

    Nothing is changed: not the weights, `.grad`, buffers, training mode, hooks, or the state of any generator.

    Args:
        module: any module, on any device; it runs in the mode it is in.
        batch: what it is called with: a tensor [B, …] of any dtype, a sequence of arguments, or a mapping of keywords.
        targets: integer labels or floating targets; random ones if left out.
        loss: `loss(output, targets)` or, without targets, `loss(output)`; cross-entropy or squared error if left out.
        classes: take the output for logits of that many classes.
        jacobian: squared singular values of ∂h/∂input: None where they are cheap, True wherever they can be had (the
            output's are estimated by iteration where it is large), False never.
        seed: of random targets and of whatever the module draws.

    Raises:
        UserError: a module without parameters, lazy or meta parameters, targets that do not fit. What the module's own
            `forward` raises comes through as it is, also of a batch that it cannot take:
            `initlab.inspection.shape_errors` explains it.


    >>> examine(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4)).calls[0].activation.name
    'tanh'
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"diagnose needs a torch.nn.Module, and this is {type(module).__name__}.")
    module = unwrapped(module)
    seed = whole_seed(seed)
    look = _Look(module, targets, loss, classes, seed)
    with as_found(module), undisturbed():
        weights = weights_of(module)
        args, kwargs = arguments(batch)
        size = batch_size(module, in_order((args, kwargs)))
        scene, found = look(weights, args, kwargs, size)
        _second_look(look, weights, scene, args, kwargs, size)
        budget = None if jacobian else BUDGET
        if jacobian is not False and any(chosen := affordable(scene.calls, size, SAMPLES, budget)):
            samples = looked_at(scene.calls, size, SAMPLES) if chosen[1] else SAMPLES
            again = _spectra(module, weights, batch, size, budget, seed, samples)
            for call, other in zip(scene.calls, again, strict=False):
                if call.layer == other.layer:
                    call.stats.update(_of_jacobian(other))
        ran = {call.weight.name for call in scene.calls if call.weight is not None}
        seen: set[str] = set()
        for call in scene.calls:
            if call.weight is not None and call.layer not in seen:
                call.measure_weight()
                seen.add(call.layer)
        for weight in weights:
            if weight.name not in ran and weight.kind != "unknown":
                call = scene.call(weight.layer, weight, {})
                call.ran = False
                call.measure_weight()
        _note_twins(scene.calls)
        value = float(found.loss.detach()) if found is not None else None
        inputs = moments_of(in_order((args, kwargs)), size)
    frame = _frame(scene.calls, value, found, inputs)
    name, count = (found.name, found.classes) if found is not None else ("", None)
    return Diagnosis(frame, scene.calls, scene.sums, value, name, count, size, inputs, idle_norms(module))


@dataclass
class _Look:
    """One forward and backward pass, heard."""

    module: nn.Module
    targets: Any
    loss: Callable[..., Any] | None
    classes: int | None
    seed: int

    def __call__(
        self,
        weights: Sequence[Weight],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        size: int,
        instead_of: torch.dtype | None = None,
    ) -> tuple[Scene, Objective | None]:
        """Look in the module's own precision, or in float64 `instead_of` it."""
        double = instead_of is not None
        set_global("diagnosed passes", self.seed)
        learned = [p.requires_grad_() for p in self.module.parameters() if p.is_floating_point()]
        fresh_args, fresh_kwargs = copied(list(args), double), copied(dict(kwargs), double)
        listener = Listener(self.module, weights, size, in_order((fresh_args, fresh_kwargs)))
        scene = listener.scene
        scene.precision = instead_of
        with listener:
            output = theirs(self.module, *fresh_args, **fresh_kwargs)
        targets = copied(self.targets, double)
        tokens = tokens_of(in_order((args, kwargs)))
        found = objective(output, targets=targets, loss=self.loss, classes=self.classes, tokens=tokens, seed=self.seed)
        try:
            if found is not None and found.loss.requires_grad:
                gradients = torch.autograd.grad(found.loss, learned, allow_unused=True)
                _write_gradients(scene.calls, dict(zip(map(id, learned), gradients, strict=True)))
        finally:
            scene.close()
        return scene, found


def _write_gradients(calls: Sequence[Call], gradients: Mapping[int, Tensor | None]) -> None:
    seen: set[str] = set()
    for call in calls:
        if call.weight is not None and call.layer not in seen:
            gradient = gradients.get(id(call.weight.tensor))
            if gradient is not None:
                call.measure_gradient(gradient)
            seen.add(call.layer)


def _note_twins(calls: Sequence[Call]) -> None:
    known = [(call, call.weight, call.facts) for call in calls if call.weight is not None and call.facts is not None]
    for (call, _, _), facts in zip(known, with_twins([w for _, w, _ in known], [f for _, _, f in known]), strict=True):
        call.facts = facts


def _second_look(
    look: _Look, weights: Sequence[Weight], scene: Scene, args: Sequence[Any], kwargs: Mapping[str, Any], size: int
) -> None:
    """Where a signal or gradient is 0 or nearly lost in rounding, look again in float64: 0, or only too small?"""
    if not weights or not any(_too_small(call, name) for call in scene.calls for name in _LOST):
        return
    own = weights[0].tensor.dtype
    try:
        with in_double(look.module):
            again, _ = look(weights, args, kwargs, size, instead_of=own)
    except (RuntimeError, TypeError, NotImplementedError):
        return  # a module that computes in one precision only: what was measured stands
    for call, better in zip(scene.calls, again.calls, strict=False):
        for name, (also, mark) in _LOST.items():
            if call.layer == better.layer and _too_small(call, name) and better.stats.get(name, 0) > 0:
                call.stats.update({k: better.stats[k] for k in (name, mark, *also) if k in better.stats})


_LOST = {
    "q": (("mean", "std", "c", "dead_fraction", "saturated_fraction"), "underflow"),
    "grad_mean_square": ((), "grad_underflow"),
}


def _too_small(call: Call, name: str) -> bool:
    return call.stats.get(name) == 0 or call.stats.get(_LOST[name][1], 0) > 0


def jacobians(module: nn.Module, batch: Batch, *, budget: float = BUDGET, seed: int = 0) -> pd.DataFrame:
    """Return the rows `jacobian_*` of `diagnose` alone: those of the first layers, as long as the budget lasts.

    Arguments: `budget` in multiplications; the rest as in `diagnose`. Empty where no single sample can be
    differentiated: under batch normalization in training mode, or for integers such as tokens.

    >>> jacobians(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(4, 8)).stat.tolist()[:3]
    ['jacobian_mean', 'jacobian_var', 'jacobian_max']
    """
    module, seed = unwrapped(module), whole_seed(seed)
    with fitting("the module", module, batch), as_found(module), undisturbed():
        size = batch_size(module, in_order(arguments(batch)))
        calls = _spectra(module, weights_of(module), batch, size, budget, seed)
    rows = [(0, call.layer, call.index, *stat, "measured") for call in calls for stat in _of_jacobian(call).items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _spectra(
    module: nn.Module,
    weights: Sequence[Weight],
    batch: Batch,
    size: int,
    budget: float | None,
    seed: int,
    samples: int = SAMPLES,
) -> list[Call]:
    """Hear a few samples once more, and write the Jacobians of the layers that the budget lasts for."""
    mixes = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in module.modules())
    if mixes or not (isinstance(batch, Tensor) and batch.is_floating_point() and len(batch) == size):
        return []  # no single sample to differentiate
    inputs = batch[:samples].detach().clone().requires_grad_()
    set_global("diagnosed passes", seed)
    listener = Listener(module, weights, len(inputs), [])
    listener.scene.kept = {}
    listener.scene.grading = False
    with listener:
        theirs(module, inputs.clone())  # a copy: the first operation may work in place
    listener.scene.close()
    calls = listener.scene.calls
    exact, estimated = affordable(calls, len(inputs), SAMPLES, budget)
    write_jacobians(calls, listener.scene.kept, inputs, exact, estimated)
    return calls


def _of_jacobian(call: Call) -> dict[str, float]:
    return {name: value for name, value in call.stats.items() if name.startswith("jacobian_")}


def _frame(
    calls: Sequence[Call], loss: float | None, found: Objective | None, inputs: Mapping[str, float]
) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    if loss is not None:
        rows.append((0, NETWORK, 0, "loss", loss, "measured"))
    if found is not None and found.classes is not None:
        rows.append((0, NETWORK, 0, "ln_classes", float(torch.tensor(float(found.classes)).log()), "measured"))
    rows += [(0, INPUT, 0, stat, value, "measured") for stat, value in inputs.items()]
    for call in calls:
        rows += [(0, call.layer, call.index, stat, value, "measured") for stat, value in call.stats.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
