"""Statistics and histograms of every layer of a part during one training step; tensors are not kept."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from initlab.diagnostics.stats import STATS, is_outside
from initlab.models import WeightLayer
from initlab.records.columns import LayerRow
from initlab.statistics.histograms import Histogram, histograms

HistogramKey = tuple[str, int, str]  # kind, index, layer
ALL_MEMBERS = slice(None)
BINNED = ("preactivation", "postactivation", "weight", "gradient")
"""Kinds of tensors of which histograms are counted."""


@dataclass(frozen=True)
class LayerProbe:
    """Where one layer is measured: its preactivation is the input of its activation, or the output of its module.

    Attributes:
        index: place of the layer in the network, from 1.
        layer: names of the layer and of its activation, and its role.
        module: the layer.
        weight: name of its weight.
    """

    index: int
    layer: WeightLayer
    module: nn.Module
    weight: str


def layer_probes(module: nn.Module) -> list[LayerProbe]:
    """List the layers to measure: those a model declares, else every module that owns a weight of two or more axes.

    >>> from initlab.models import build
    >>> net = build("mlp", depth=1, width=4, act="tanh", input_shape=(3,), classes=2)
    >>> [probe.weight for probe in layer_probes(net)]
    ['hidden.0.weight', 'readout.weight']
    """
    modules = dict(module.named_modules())
    declared = getattr(module, "weight_layers", None)
    if declared is None:
        declared = [
            WeightLayer(name, "unknown", "unknown")
            for name, m in modules.items()
            if isinstance(getattr(m, "weight", None), Tensor) and m.weight.dim() >= 2
        ]
    return [LayerProbe(i, one, modules[one.name], f"{one.name}.weight") for i, one in enumerate(declared, start=1)]


class LayerRecorder:
    """Record statistics and histograms of every layer of a part during one step.

    Hooks are set in a `with` block, and removed at its end.

    Args:
        part: the networks: `module`, `members`, `names`, `parameters`, `by_member`, `stacked`.
        step: written into the rows.
        interval: preactivations outside it are saturated; None: they are not counted.
    """

    def __init__(self, part: Any, *, step: int, interval: tuple[float, float] | None):
        self.part = part
        self.step = step
        self.interval = interval
        self.rows: list[list[LayerRow]] = [[] for _ in part.members]
        self.histograms: list[dict[HistogramKey, Histogram]] = [{} for _ in part.members]
        self.probes = layer_probes(part.module)
        self.hooks = ExitStack()
        self.weights_before: dict[str, Tensor] = {}

    def __enter__(self) -> "LayerRecorder":
        modules = dict(self.part.module.named_modules())
        for probe in self.probes:
            if probe.layer.activation is None:
                self._add_hook(probe.module.register_forward_hook, self._record_preactivation, probe)
            else:
                activation = modules[probe.layer.activation]
                self._add_hook(activation.register_forward_pre_hook, self._record_preactivation, probe)
                self._add_hook(activation.register_forward_hook, self._record, probe, "postactivation")
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def _add_hook(self, register: Callable[..., Any], record: Callable[..., None], *arguments: Any) -> None:
        def hook(module: nn.Module, args: Any, *output: Any) -> None:
            record(*arguments, *(output or args[:1]))

        self.hooks.enter_context(register(hook))

    def _record_preactivation(self, probe: LayerProbe, tensor: Any) -> None:
        if not torch.is_tensor(tensor):
            return  # of the outputs of a user's layer none is known to be the preactivation
        self._record(probe, "preactivation", tensor)
        if tensor.requires_grad:
            # A tensor hook, not retain_grad: it gets the gradient even when the activation works in place.
            self.hooks.enter_context(tensor.register_hook(lambda grad: self._record(probe, "delta", grad)))

    def _record(self, probe: LayerProbe, kind: str, tensor: Tensor) -> None:
        self._measure(probe, kind, self.part.by_member(tensor.detach()))

    def _measure(self, probe: LayerProbe, kind: str, by_input: Tensor, members: slice = ALL_MEMBERS) -> None:
        x = units_last(by_input, probe)
        counted = self._write(probe, kind, x, members)
        if kind == "preactivation" and self.step == 0:
            # Theory predicts these before training; later they would cost a pass in float64 at every record.
            self._write(probe, "inputs", by_input, members)
        if kind == "preactivation" and self.interval is not None and probe.layer.activation is not None:
            low, high = self.interval
            within = all(low <= h.low and h.high <= high and not h.nonfinite for h in counted)
            outside = torch.zeros(len(x), 1) if within else is_outside(x.double(), self.interval)
            self._write(probe, "outside", outside, members)

    def _write(self, probe: LayerProbe, kind: str, x: Tensor, members: slice = ALL_MEMBERS) -> list[Histogram]:
        """Count histograms, one per member, and write the statistics of this kind, from histograms where possible."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()  # numpy has no bfloat16
        counted = histograms(memory_order_view(x).cpu().numpy()) if kind in BINNED else []
        for own, histogram in zip(self.histograms[members], counted, strict=False):
            own[kind, probe.index, probe.layer.name] = histogram
        finite = [bool(one.num and not one.nonfinite) for one in counted] or [False] * len(x)
        precise: Tensor | None = None
        for stat in (stat for stat in STATS.values() if stat.of == kind):
            # Each member by itself: its bits must not depend on whether another has diverged.
            values = [stat.counted(one) if fine else None for one, fine in zip_longest(counted, finite)]
            if None in values:
                if not stat.compares:
                    precise = x.double() if precise is None else precise
                measured = stat.measure(x if precise is None else precise).tolist()
                values = [own if own is not None else other for own, other in zip(values, measured, strict=True)]
            self._add_rows(probe, stat.name, values, members)
        return counted

    def _add_rows(self, probe: LayerProbe, stat: str, values: list, members: slice = ALL_MEMBERS) -> None:
        for rows, value in zip(self.rows[members], values, strict=True):
            rows.append(LayerRow(self.step, probe.layer.name, probe.index, stat, value, "measured"))

    def measure_gradients(self, named: dict[str, Tensor], members: slice = ALL_MEMBERS) -> None:
        """Measure weights and their gradients, given by parameter name; the weights are those before the update."""
        weights = {**self._parameters(), **self.weights_before}
        for probe in self.probes:
            if probe.weight in named:
                self._write(probe, "weight", self._stacked(weights[probe.weight])[members], members)
                self._write(probe, "gradient", self._stacked(named[probe.weight]), members)
                if self.step == 0 and (rows := self._units(probe, weights)) is not None:
                    self._write(probe, "units", rows[members], members)

    def measure_members(
        self,
        members: slice,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        deltas: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        """Measure members that were computed without their modules, so that no hook ran; after `copy_weights`.

        Args:
            members: which members the tensors are of.
            before: preactivations [K, B, units] by layer.
            after: postactivations [K, B, units] by layer.
            deltas: gradients of the loss at the preactivations [K, B, units] by layer.
            gradients: gradients of the parameters [K, …] by parameter.
        """
        for probe, z, y in zip(self.probes, before, after, strict=True):
            self._measure(probe, "preactivation", z, members)
            if probe.layer.activation is not None:
                self._measure(probe, "postactivation", y, members)
        for probe, delta in zip(reversed(self.probes), reversed(deltas), strict=True):
            self._measure(probe, "delta", delta, members)
        self.measure_gradients(dict(zip(self.part.names, gradients, strict=True)), members)

    def copy_weights(self) -> None:
        """Copy the weights, to measure later how far the update moves them."""
        probed = {probe.weight for probe in self.probes}
        self.weights_before = {name: w.detach().clone() for name, w in self._parameters().items() if name in probed}

    def measure_update(self) -> None:
        """Measure the update: ‖ΔW‖ / ‖W‖."""
        parameters = self._parameters()
        for probe in self.probes:
            if probe.weight in self.weights_before:
                pairs = zip(*(self._stacked(w[probe.weight]) for w in (self.weights_before, parameters)), strict=True)
                # One network after another: in float64 all of them are far more than the cache holds.
                self._add_rows(probe, "update_ratio", [relative_change(old, new) for old, new in pairs])

    def _parameters(self) -> dict[str, Tensor]:
        return dict(zip(self.part.names, self.part.parameters, strict=True))

    def _units(self, probe: LayerProbe, named: dict[str, Tensor]) -> Tensor | None:
        """View a layer's weight as [N, G, units, inputs], its bias as a last column; None where no axis holds units."""
        rows = unit_rows(self._stacked(named[probe.weight]), probe.module, probe.layer.role)
        bias = named.get(f"{probe.layer.name}.bias")
        if rows is None or bias is None:
            return rows
        return torch.cat([rows, self._stacked(bias).reshape(*rows.shape[:-1], 1)], dim=-1)

    def _stacked(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.part.stacked else tensor.detach().unsqueeze(0)


def units_last(x: Tensor, probe: LayerProbe) -> Tensor:
    """View [N, B, …] as [N, samples, units]: channels of a map are units, its positions samples."""
    if x.dim() > 3 and isinstance(probe.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        x = x.movedim(2, -1)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def unit_rows(weight: Tensor, module: nn.Module, role: str) -> Tensor | None:
    """View weights [N, …] as [N, G, units, inputs], groups of a convolution apart; None for other kinds of layers.

    >>> unit_rows(torch.zeros(1, 4, 3, 3, 3), nn.Conv2d(6, 4, 3, groups=2), "hidden").shape
    torch.Size([1, 2, 2, 27])
    """
    transposed = getattr(module, "transposed", False)
    if role == "embedding" or transposed or weight.dim() < 3:
        return None
    groups = getattr(module, "lone_groups", getattr(module, "groups", 1)) if weight.dim() > 3 else 1
    return weight.reshape(weight.shape[0], groups, weight.shape[1] // groups, -1)


def relative_change(old: Tensor, new: Tensor) -> float:
    """Return ‖new − old‖ / ‖old‖, computed in float64.

    >>> relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    0.2
    """
    x = old.flatten().to(torch.float64, copy=True)
    length = torch.dot(x, x)
    x -= new.flatten()
    return (torch.dot(x, x) / length).sqrt().item()


def memory_order_view(x: Tensor) -> Tensor:
    """View [N, samples, units] in the order of its memory, for uses without an order; a copy would take longer."""
    turned = x.transpose(1, -1)
    return turned if turned.is_contiguous() else x


def first_bad_layers(part: Any, run: Callable[[], Tensor]) -> dict[int, str]:
    """Find each member's first layer with a non-finite output in a forward pass.

    Args:
        part: the networks, as in `LayerRecorder`.
        run: runs the forward pass.

    Returns:
        Position of a member -> name of the layer; members whose layers are all finite are left out.
    """
    bad: dict[int, str] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            finite = torch.isfinite(part.by_member(output)).flatten(1).all(1)
            for position in (~finite).nonzero().flatten().tolist():
                bad.setdefault(position, name)

    with ExitStack() as hooks, torch.no_grad():
        for probe in layer_probes(part.module):
            hook = partial(lambda name, module, args, output: note(name, output), probe.layer.name)
            hooks.enter_context(probe.module.register_forward_hook(hook))
        run()
    return bad
