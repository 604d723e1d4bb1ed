"""Hear every torch function that a forward pass calls: activations that are no modules, bare weights, norms, sums."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from initlab.activations import Activation
from initlab.diagnostics.trace.function_table import LINEAR, NONLINEAR, called_activation, function_name, signal_step
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import DIRECT, Call, Origins, Provenance, StreamSum, merge_origins, second_moment
from initlab.diagnostics.weights import LAYER_TYPES, Weight
from initlab.inspection import Block, Fans
from initlab.inspection.batch import is_float_tensor
from initlab.inspection.exceptions import call_user_code

TracedTensors: TypeAlias = list[tuple[Tensor, Origins]]


class FunctionTracer(TorchFunctionMode):
    """Follow signals through functions: what was done to each since the layer it came from."""

    def __init__(self, scene: PassRecorder):
        super().__init__()
        self.scene = scene
        known = [w for w in reversed(scene.weights) if w.kind != "parametrized" and not w.tied]
        self.parameters = {id(w.tensor): w for w in known}
        self.views = Provenance()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function, and note what it did."""
        kwargs = kwargs or {}
        if not self.scene.listening:
            return call_user_code(function, *args, **kwargs)
        traced = self.scene.origin.traced(args, kwargs)
        name = function_name(function)
        if not traced:
            out = call_user_code(function, *args, **kwargs)
            self._view_of_parameter(name, args, out)
            return out
        act = called_activation(name, args, kwargs)
        if act is not None or name in NONLINEAR:
            return self._activation(act, traced, function, args, kwargs)
        out = call_user_code(function, *args, **kwargs)
        used = self._weight_among(args, kwargs) if name in LINEAR else None
        if used is not None:
            self._bare_weight(name, *used, traced, out)
        elif isinstance(out, Tensor) or (isinstance(out, (tuple, list)) and any(isinstance(x, Tensor) for x in out)):
            self._step(name, args, traced, out)
        return out

    # --- activations --------------------------------------------------------------------------------------------------

    def _activation(
        self,
        act: Activation | None,
        traced: TracedTensors,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        scene = self.scene
        tensor, trace = traced[0]
        call = scene.declared or self._unactivated(trace)
        if call is not None:
            call.activation = act
            if act is not None and is_float_tensor(tensor):  # before the call, which may work in place
                with scene.deaf():
                    call.measure_entering(tensor, act)
        origin = merge_origins((trace for _, trace in traced), "activation")
        out = call_user_code(function, *args, **kwargs)
        scene.origin.mark(out, origin)
        if call is not None and scene.declared is None:
            scene.measure(call, "postactivation", out)
        return out

    def _unactivated(self, trace: Origins) -> Call | None:
        # An activation belongs to the latest layer among those that no other activation has touched on the way here;
        # behind a sum to the branch, not to a projection in the shortcut that happens to be computed after it.
        fresh = {i for i, words in trace.items() if i and "activation" not in words}
        if not fresh:
            return None
        joined = {self.scene.sums[-1].after, self.scene.sums[-1].before} & fresh if self.scene.sums else set()
        open_ends = [i for i in joined if self.scene.calls[i - 1].activation is None]
        latest = min(open_ends) if len(open_ends) == 2 else max(fresh)
        call = self.scene.calls[latest - 1]
        return call if call.activation is None else None

    # --- everything between a layer and the next ----------------------------------------------------------------------

    def _step(self, name: str, args: tuple[Any, ...], traced: TracedTensors, out: Any) -> None:
        word = signal_step(name, len(traced))
        if word == "shift" and self._is_bias(args, traced):
            self.scene.preactivation(self.scene.calls[max(traced[0][1]) - 1], out)
            word = None
        if word is not None:
            for index in {i for _, trace in traced for i, words in trace.items() if i and "activation" not in words}:
                self.scene.calls[index - 1].into.add(word)
        if word == "gate":
            self._self_gated(traced)
            self._gate_aside(traced)
        if word == "sum" and len(traced) == 2:
            self._sum(traced, out)
        self.scene.origin.mark(out, merge_origins((trace for _, trace in traced), word))

    def _self_gated(self, traced: TracedTensors) -> None:
        # x · sigmoid(x) is no sigmoid: the same signal meets itself, once with and once without the activation.
        (_, one), (_, two) = traced[:2]
        for index in set(one) & set(two) - {0}:
            if ("activation" in one[index]) != ("activation" in two[index]):
                self.scene.calls[index - 1].forget_activation()

    def _gate_aside(self, traced: TracedTensors) -> None:
        # signal · gate(signal): what was called since the signal is no part of the way that the signal itself takes.
        signal, gate = sorted(max(trace) for _, trace in traced[:2])
        if 0 < signal < gate and signal in self.scene.calls[signal].fed:
            for call in self.scene.calls[signal:gate]:
                call.aside = True

    def _sum(self, traced: TracedTensors, out: Any) -> None:
        (one, first), (two, second) = traced
        if one.shape != two.shape or not is_float_tensor(out) or max(first) == max(second):
            return
        if max(first) > max(second):  # the branch holds the latest layer
            one, two, first, second = two, one, second, first
        scene = self.scene
        with scene.deaf():
            moments = second_moment(one), second_moment(two), second_moment(out)
        scene.sums.append(StreamSum(scene.running[-1][1] if scene.running else "", max(second), max(first), *moments))

    # --- weights that are no layers -----------------------------------------------------------------------------------

    def _weight_among(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Weight, Tensor, bool] | None:
        """Return the parameter that a linear function multiplies by, as given, and whether it is the first factor."""
        for position, value in enumerate((*args, *kwargs.values())):
            if not isinstance(value, Tensor) or value.dim() < 2:
                continue
            weight = self.parameters.get(id(value))
            if weight is None and (viewed := self.views.traced([value])):
                weight = self.parameters[next(iter(viewed[0][1]))]
            if weight is not None:
                return None if self._heard(weight) else (weight, value, position == 0)
        return None

    def _heard(self, weight: Weight) -> bool:
        # A layer that runs now, and whose weight this is (its own or a tied one), is heard by its hook.
        layers = (module for module, _, _ in self.scene.running if isinstance(module, LAYER_TYPES))
        return any(weight.tensor is tensor for module in layers for tensor in module._parameters.values())

    def _view_of_parameter(self, name: str, args: Sequence[Any], out: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor) and signal_step(name, 1) is None:
            if id(args[0]) in self.parameters:
                self.views.mark(out, {id(args[0]): DIRECT})
            elif viewed := self.views.traced([args[0]]):
                self.views.mark(out, viewed[0][1])

    def _bare_weight(
        self, name: str, weight: Weight, given: Tensor, first: bool, traced: TracedTensors, out: Any
    ) -> None:
        if weight.kind == "unknown" or (weight.kind == "embedding" and name != "embedding"):
            blocks = oriented_blocks(name, tuple(given.shape), given.stride() != weight.tensor.stride(), first)
            tied = weight.name if weight.kind == "embedding" else ""
            weight = replace(weight, kind="dense" if blocks else "unknown", blocks=blocks, tied=tied)
        fed = merge_origins(trace for _, trace in traced)
        call = self.scene.call(weight.layer, weight, fed, channels_first=name.startswith("conv"))
        self.scene.preactivation(call, self.scene.produced(call, out))

    def _is_bias(self, args: Sequence[Any], traced: TracedTensors) -> bool:
        # x @ W + b written by hand: the preactivation is what comes after the bias.
        ((_, trace),) = traced
        index = max(trace)
        if not (len(trace) == 1 and index > 0 and trace[index] == DIRECT):
            return False
        weight = self.scene.calls[index - 1].weight
        bare = weight is not None and not isinstance(weight.owner, LAYER_TYPES)
        return bare and any(isinstance(a, nn.Parameter) and a.dim() == 1 for a in args)


def oriented_blocks(name: str, shape: tuple[int, ...], transposed: bool, first: bool) -> tuple[Block, ...]:
    """Say which way round a bare parameter is used: as (out, in), or as (in, out) where a signal is multiplied by it.

    `shape` is that of the matrix as it is given to the function, `transposed` whether it is a transposed view of the
    parameter. Empty where that cannot be said.

    >>> oriented_blocks("matmul", (784, 128), transposed=False, first=False)[0].fans
    Fans(fan_in=784, fan_out=128, receptive=1)
    """
    if len(shape) != 2 or name not in ("linear", "matmul", "mm", "addmm"):
        return ()
    rows_out = name == "linear" or first
    out, inputs = shape if rows_out else shape[::-1]
    return (Block(Fans(inputs, out), (out, inputs), swapped=rows_out == transposed),)
