"""A tape listens to one forward and backward pass and keeps numbers, not tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from initlab.diagnostics.stats import STATS, saturated_fraction
from initlab.models import WeightLayer
from initlab.statistics.histograms import Histogram, histograms

Row = tuple[int, str, int, str, float, str]  # step, layer, index, stat, value, source
HistogramKey = tuple[str, int, str]  # kind, index, layer
ALL_MEMBERS = slice(None)


@dataclass(frozen=True)
class LayerProbe:
    """Where one layer is listened to: its preactivation is the input of `activation`, or the output of `name`."""

    index: int
    layer: WeightLayer
    module: nn.Module
    weight: str


def layer_probes(module: nn.Module) -> list[LayerProbe]:
    """List the layers to listen to: those a model declares, else every module that owns a weight of two or more axes.

    >>> from initlab.models import build
    >>> [tap.weight for tap in layer_probes(build("mlp", depth=1, width=4, act="tanh", input_shape=(3,), classes=2))]
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
    return [
        LayerProbe(i, layer, modules[layer.name], f"{layer.name}.weight") for i, layer in enumerate(declared, start=1)
    ]


class LayerRecorder:
    """Record statistics and histograms of every layer of a part during one step; hooks leave with the `with` block.

    Arguments: `part` (module, by_member, stacked), `interval` outside which the activation is saturated (None: not
    counted), `step` to write into the rows, `histogram` whether to bin.
    """

    def __init__(self, part: Any, *, step: int, interval: tuple[float, float] | None, histogram: bool = True):
        self.part = part
        self.step = step
        self.interval = interval
        self.histogram = histogram
        members = len(part.members)
        self.rows: list[list[Row]] = [[] for _ in range(members)]
        self.histograms: list[dict[HistogramKey, Histogram]] = [{} for _ in range(members)]
        self.taps = layer_probes(part.module)
        self.handles: list[Any] = []
        self.weights_before: dict[str, Tensor] = {}

    def __enter__(self) -> "LayerRecorder":
        modules = dict(self.part.module.named_modules())
        for tap in self.taps:
            if tap.layer.activation is None:
                self.handles.append(tap.module.register_forward_hook(self._on_output(tap)))
            else:
                activation = modules[tap.layer.activation]
                self.handles.append(activation.register_forward_pre_hook(self._on_input(tap)))
                self.handles.append(activation.register_forward_hook(self._on_activation(tap)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _on_input(self, tap: LayerProbe) -> Callable:
        return lambda module, args: self._preactivation(tap, args[0])

    def _on_output(self, tap: LayerProbe) -> Callable:
        # A user's layer may return a tuple, of which nobody knows what is the preactivation.
        return lambda module, args, output: self._preactivation(tap, output) if torch.is_tensor(output) else None

    def _on_activation(self, tap: LayerProbe) -> Callable:
        return lambda module, args, output: self._hear(tap, "postactivation", output)

    def _preactivation(self, tap: LayerProbe, tensor: Tensor) -> None:
        self._hear(tap, "preactivation", tensor)
        if tensor.requires_grad:
            # A tensor hook, not retain_grad: it sees the gradient even when the activation works in place.
            self.handles.append(tensor.register_hook(lambda grad: self._hear(tap, "delta", grad)))

    def _hear(self, tap: LayerProbe, kind: str, tensor: Tensor) -> None:
        self._measure(tap, kind, self.part.by_member(tensor.detach()))

    def _measure(self, tap: LayerProbe, kind: str, by_input: Tensor, members: slice = ALL_MEMBERS) -> None:
        x = units_last(by_input, tap)
        counted = self._write(tap, kind, x, members)
        if kind == "preactivation" and self.step == 0:
            # What theory forecasts before training; afterwards it would cost a pass in float64 at every record.
            self._write(tap, "inputs", by_input, members)
        if kind == "preactivation" and self.interval is not None and tap.layer.activation is not None:
            low, high = self.interval
            within = counted and all(low <= h.low and h.high <= high and not h.nonfinite for h in counted)
            values = [0.0] * len(x) if within else saturated_fraction(x.double(), self.interval).tolist()
            self._add(tap, "saturated_fraction", values, members)

    def _write(self, tap: LayerProbe, kind: str, x: Tensor, members: slice = ALL_MEMBERS) -> list[Histogram]:
        """Count histograms, one per member, and write the statistics of this kind: read off them where they tell."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()  # numpy knows no bfloat16
        counted = (
            histograms(memory_order_view(x).cpu().numpy())
            if self.histogram and kind not in ("delta", "inputs", "units")
            else []
        )
        for own, record in zip(self.histograms[members], counted, strict=False):
            own[kind, tap.index, tap.layer.name] = record
        finite = [bool(record.num and not record.nonfinite) for record in counted] or [False] * len(x)
        precise: Tensor | None = None
        for stat in (stat for stat in STATS.values() if stat.of == kind):
            # Each member by itself: the bits of one do not tell whether another has diverged.
            values = [stat.counted(record) if fine else None for record, fine in zip_longest(counted, finite)]
            if None in values:
                if not stat.compares:
                    precise = x.double() if precise is None else precise
                measured = stat.measure(x if precise is None else precise).tolist()
                values = [own if own is not None else other for own, other in zip(values, measured, strict=True)]
            self._add(tap, stat.name, values, members)
        return counted

    def _add(self, tap: LayerProbe, stat: str, values: list, members: slice = ALL_MEMBERS) -> None:
        for rows, value in zip(self.rows[members], values, strict=True):
            rows.append((self.step, tap.layer.name, tap.index, stat, value, "measured"))

    def gradients(self, named: dict[str, Tensor], members: slice = ALL_MEMBERS) -> None:
        """Measure weights and their gradients, given by parameter name; the weights are those before the update."""
        weights = {**dict(zip(self.part.names, self.part.parameters, strict=True)), **self.weights_before}
        for tap in self.taps:
            if tap.weight in named:
                self._write(tap, "weight", self._stacked(weights[tap.weight])[members], members)
                self._write(tap, "gradient", self._stacked(named[tap.weight]), members)
                if self.step == 0 and (rows := self._units(tap, weights)) is not None:
                    self._write(tap, "units", rows[members], members)

    def read(
        self,
        members: slice,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        deltas: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        """Measure what these members gave, where they were computed past their modules, which nobody could listen to.

        Tensors are [K, B, units] by layer, before and after its activation, and [K, …] by parameter. `before_update`
        comes first: by now the weights have moved.
        """
        for tap, z, y in zip(self.taps, before, after, strict=True):
            self._measure(tap, "preactivation", z, members)
            if tap.layer.activation is not None:
                self._measure(tap, "postactivation", y, members)
        for tap, delta in zip(reversed(self.taps), reversed(deltas), strict=True):
            self._measure(tap, "delta", delta, members)
        self.gradients(dict(zip(self.part.names, gradients, strict=True)), members)

    def before_update(self) -> None:
        """Remember the weights, to know how far the update moves them."""
        parameters = dict(zip(self.part.names, self.part.parameters, strict=True))
        self.weights_before = {
            t.weight: parameters[t.weight].detach().clone() for t in self.taps if t.weight in parameters
        }

    def after_update(self) -> None:
        """Measure the update: ‖ΔW‖ / ‖W‖."""
        parameters = dict(zip(self.part.names, self.part.parameters, strict=True))
        for tap in self.taps:
            if tap.weight in self.weights_before:
                before, after = (self._stacked(w) for w in (self.weights_before[tap.weight], parameters[tap.weight]))
                # One network after another: in float64 all of them are far more than the cache holds.
                self._add(
                    tap, "update_ratio", [relative_change(old, new) for old, new in zip(before, after, strict=True)]
                )

    def _units(self, tap: LayerProbe, named: dict[str, Tensor]) -> Tensor | None:
        """View a layer's weight as [N, G, units, inputs], its bias as a last column; None where no axis holds units."""
        rows = unit_rows(self._stacked(named[tap.weight]), tap.module, tap.layer.role)
        bias = named.get(f"{tap.layer.name}.bias")
        if rows is None or bias is None:
            return rows
        return torch.cat([rows, self._stacked(bias).reshape(*rows.shape[:-1], 1)], dim=-1)

    def _stacked(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor if self.part.stacked else tensor.unsqueeze(0)


def units_last(x: Tensor, tap: LayerProbe) -> Tensor:
    """View [N, B, …] as [N, samples, units]: channels of a map are units, its positions samples."""
    if x.dim() > 3 and isinstance(tap.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
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
    """View [N, samples, units] in the order of its memory, for what asks for no order: a copy would take longer."""
    turned = x.transpose(1, -1)
    return turned if turned.is_contiguous() else x


def first_bad_layers(part: Any, run: Callable[[], Tensor]) -> dict[int, str]:
    """Call `run`, a forward pass of the part, and name each member's first layer with a non-finite output.

    Returns position -> layer; a member whose layers are all finite is left out.
    """
    found: dict[int, str] = {}

    def note(tap: LayerProbe, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        finite = torch.isfinite(part.by_member(output)).flatten(1).all(1).tolist()
        for position, fine in enumerate(finite):
            if not fine:
                found.setdefault(position, tap.layer.name)

    handles = [
        tap.module.register_forward_hook(lambda module, args, output, tap=tap: note(tap, output))
        for tap in layer_probes(part.module)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found
