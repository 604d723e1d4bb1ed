"""Listen to one forward and backward pass of any module, and write down what each of its layers does."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from initlab.diagnostics.trace.function_mode import FunctionTracer
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import Call, Origins, merge_origins
from initlab.diagnostics.weights import LAYER_TYPES, Weight
from initlab.inspection.parameters import plain_name

RECURRENT_TYPES = (nn.RNNBase, nn.RNNCellBase)


class ModuleTracer:
    """Hear one forward pass inside the `with` block; gradients are heard afterwards, until `close`.

    Hooks hear the modules that hold weights, a mode that sees every torch function hears the rest. Where a module
    declares `weight_layers`, a layer's preactivation is the input of the activation declared for it (behind a norm,
    where there is one); else it is the layer's output.

    Arguments: `module`; its `weights`; `batch`, the number of inputs; `data`, the tensors that are fed to it.
    """

    def __init__(self, module: nn.Module, weights: Sequence[Weight], batch: int, data: Sequence[Tensor]):
        self.module = module
        self.scene = PassRecorder(weights, batch, data)
        self.ear = FunctionTracer(self.scene)
        self.unfinished: nn.Module | None = None  # the innermost module in which a forward pass broke off
        self.handles: list[Any] = []
        modules = dict(module.named_modules())
        declared = getattr(module, "weight_layers", ())
        self.acts = {layer.name: modules[layer.activation] for layer in declared if layer.activation is not None}
        self.waiting: dict[int, Call] = {}  # id of a declared activation -> the call whose output comes to it

    def __enter__(self) -> "ModuleTracer":
        for name, module in self.module.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            own = plain_name(name)
            self.handles.append(module.register_forward_pre_hook(self._before(own), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._after(own), with_kwargs=True))
        self.ear.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ear.__exit__(*error)
        if self.scene.running:
            self.unfinished = self.scene.running[-1][0]
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            scene = self.scene
            scene.running.append((module, name, merge_origins(trace for _, trace in scene.origin.traced(args, kwargs))))
            call = self.waiting.pop(id(module), None)
            if call is not None:
                scene.declared = call
                scene.preactivation(call, args[0])

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            scene = self.scene
            fed: Origins = {}
            while scene.running:
                running, _, fed = scene.running.pop()
                if running is module:
                    break
            if scene.declared is not None and self.acts.get(scene.declared.layer) is module:
                scene.measure(scene.declared, "postactivation", output)
                scene.declared = None
            elif isinstance(module, nn.MultiheadAttention) and (
                projections := self._projections(module, args, kwargs, output)
            ):
                self._attention(name, module, projections, output)
            elif isinstance(module, RECURRENT_TYPES):
                self._recurrent(module, name, fed, output)
            elif isinstance(module, LAYER_TYPES):
                self._layer(name, next((w for w in scene.weights if w.owner is module), None), fed, output)

        return hook

    def _layer(self, layer: str, weight: Weight | None, fed: Origins, output: Any) -> Call:
        conv = weight is not None and isinstance(weight.owner, nn.modules.conv._ConvNd)
        call = self.scene.call(layer, weight, fed, channels_first=conv)
        tensor = self.scene.produced(call, output)
        act = self.acts.get(layer)
        if act is not None:
            self.waiting[id(act)] = call
        else:
            self.scene.preactivation(call, tensor)
        return call

    def _projections(self, module: nn.MultiheadAttention, args: Any, kwargs: Any, output: Any) -> list[Any]:
        # A subclass may keep other weights, take other arguments, or return other things than torch's own class: [].
        given = [*args, *(kwargs[k] for k in ("query", "key", "value")[len(args) :] if k in kwargs)][:3]
        weights = [w for w in self.scene.weights if w.owner is module and w.is_projection]
        pairs = list(zip(weights, given, strict=False))
        tensors = len(given) == 3 == len(weights) and all(isinstance(t, Tensor) and t.dim() > 1 for t in given)
        fits = tensors and all(w.blocks[0].shape[1] == t.shape[-1] for w, t in pairs)
        return pairs if fits and isinstance(output, tuple) else []

    def _attention(self, name: str, module: nn.MultiheadAttention, projections: list[Any], output: Any) -> None:
        # Its projections are hidden in one fused function: q, k and v are computed once more, forward only.
        scene = self.scene
        inner: Origins = {}
        for weight, tensor in projections:
            call = scene.call(weight.layer, weight, merge_origins(trace for _, trace in scene.origin.traced([tensor])))
            with scene.deaf(), torch.no_grad():
                projected = nn.functional.linear(tensor, weight.part(weight.tensor), weight.bias)
            scene.measure(call, "preactivation", projected)
            inner[call.index] = frozenset({"other"})
        out = next((w for w in scene.weights if w.owner is module.out_proj), None)
        self._layer(f"{name}.out_proj" if name else "out_proj", out, inner, output[0])

    def _recurrent(self, module: nn.Module, name: str, fed: Origins, output: Any) -> None:
        scene = self.scene
        for weight in scene.weights:
            if weight.owner is module and weight.layer not in scene.listed:
                scene.call(weight.layer, weight, fed)
        call = self._layer(name, None, fed, output)
        # what comes out has passed gates and a tanh already: no preactivation for theory to follow
        scene.origin.mark(output, {call.index: frozenset({"other"})})
        call.into.add("other")
