"""One parameter against what is promised of it: the p-values of every check that applies."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from initlab.initialize import Task, measured
from initlab.initialize.plan import padding
from initlab.schemes import Law, laws
from initlab.schemes.law_checks import EXACT, p_values, repeated_units

FIRST = 2048
"""Elements of each parameter that are compared with other parameters': a reused seed shows in the first of them."""

CERTAIN = 60
"""Small tensors are compared exactly where chance makes them equal with a probability below 2 to minus this."""


PADDING = "padding"
"""Label of the row of an embedding that stays zero."""


@dataclass(frozen=True)
class Group:
    """Elements of a parameter that follow one law: `label` is q, k, v, a gate, a number of a group, or ""."""

    label: str
    law: Law
    values: Tensor


@dataclass
class Finding:
    """What was found of one parameter; its values are not kept, `task.parameter.values()` gives them again.

    Attributes:
        task: what is promised.
        p: (label, check) -> p; 0 or 1 where a check is exact.
        mean, std: measured.
        sample: its first random elements less their promised mean, to be compared with other parameters' (or None).
        key: its bytes, where it is small and random.
    """

    task: Task
    p: dict[tuple[str, str], float] = field(default_factory=dict)
    mean: float = math.nan
    std: float = math.nan
    sample: np.ndarray | None = None
    key: bytes = b""

    @property
    def random(self) -> list[float]:
        """The p-values of checks that chance can fail."""
        return [p for (_, check), p in self.p.items() if check not in EXACT]

    @property
    def checks(self) -> int:
        """How many comparisons with the promise were made; finite values alone show nothing, others break it."""
        return sum(check != "finite" or p == 0 for (_, check), p in self.p.items()) if self.task.writes else 0

    def broken(self, alpha: float) -> list[tuple[str, str]]:
        """Return the checks that fail when each random one may give a false alarm with probability `alpha`."""
        return [key for key, p in self.p.items() if (p == 0 if key[1] in EXACT else p < alpha)]


def check(task: Task) -> Finding:
    """Test one parameter; those without a promise are only asked for finite values."""
    found = Finding(task)
    if task.parameter.refusal:
        return found
    values = task.parameter.values()
    if not values.numel():
        return found
    found.mean, found.std = measured(values)
    if not task.writes:
        found.p["", "finite"] = float(bool(values.isfinite().all()))
        return found
    parts = groups(task, values)
    for group in parts:
        for name, p in p_values(group.values, group.law, units=()).items():
            found.p[group.label, name] = p
    _merge_exact(found)
    if task.rule == "scheme" and (zero := padding(task.parameter)) is not None:
        found.p[PADDING, "structure"] = float(not bool(values[zero].any()))
    random = [group for group in parts if not group.law.deterministic and not math.isnan(group.law.variance)]
    if random and found.p["", "finite"]:
        rows = units(task, values)
        if rows is not None and rows.shape[0] > 1 and rows.shape[1] > 1 and not _two_values(random[0]):
            found.p["", "units differ"] = repeated_units(rows, random[0].law)
        if (relation := _mirrored(task, values)) is not None:
            found.p["i", "structure"] = relation
        found.sample, found.key = _sample(random[0], values, alone=bool(task.gates))
    return found


def _two_values(group: Group) -> bool:
    # An orthogonal 1 x 1 matrix is the gain or minus the gain: depthwise units repeat each other by right.
    law = group.law
    if law.orthogonal is None:
        return False
    return (group.values if law.part is None else law.part(group.values.cpu().double())).numel() == 1


def _sample(group: Group, values: Tensor, alone: bool) -> tuple[np.ndarray | None, bytes]:
    law, block = group.law, group.values
    if alone and law.cdf is not None:  # gates of other laws beside it; and this one need not be symmetric
        block = torch.from_numpy(law.cdf(block.double().cpu().numpy()) - 0.5 + law.mean)
    elif law.part is not None:  # what repeats inside a block (mirrored halves) counts once
        block = law.part(block.cpu().double())
    elif not values.is_complex():
        block = values  # in order of storage, as libraries fill them
    first = block.reshape(-1)[:FIRST].double().cpu().numpy() - law.mean
    if first.size < 2 or float(np.ptp(first)) == 0:
        return None, b""
    bits = 8 if values.element_size() == 2 else 20  # of an element, at the least, where two agree by chance
    telling = bits * values.numel() > CERTAIN and values.numel() <= FIRST
    return first, values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if telling else b""


def _merge_exact(found: Finding) -> None:
    # One entry says that all is finite, however many parts there are.
    finite = [p for (_, name), p in found.p.items() if name == "finite"]
    found.p = {key: p for key, p in found.p.items() if key[1] != "finite"} | {("", "finite"): min(finite)}


def groups(task: Task, values: Tensor) -> list[Group]:
    """Return the parts of a parameter that follow one law each."""
    return list(_groups(task, values))


def _groups(task: Task, values: Tensor) -> Iterator[Group]:
    if values.is_complex():
        yield from _complex_groups(task, values)
        return
    promised = task.promised()
    if not task.blocks or (len(promised) == 1 and len(task.blocks) <= 1):
        blocks = task.blocks
        yield Group("", promised[0], _without_padding(task, blocks[0].view(values) if blocks else values))
        return
    independent = task.rule != "scheme" or (task.scheme is not None and task.scheme.elementwise)
    labelled = any(block.label for block in task.blocks)
    if independent and not labelled and all(law is promised[0] for law in promised):
        # Groups of a convolution: one law for all, and independent elements.
        yield Group("", promised[0], values)
        return
    if len(promised) == 1:
        yield Group("", promised[0], values)
        return
    for index, (block, law) in enumerate(zip(task.blocks, promised, strict=True)):
        yield Group(block.label or str(index), law, block.view(values))


def _complex_groups(task: Task, values: Tensor) -> Iterator[Group]:
    parts = torch.view_as_real(values.resolve_conj())
    for index, law in enumerate(task.promised()):
        view = task.blocks[index].view if len(task.promised()) > 1 else (lambda tensor: tensor)
        label = task.blocks[index].label or (str(index) if index else "") if task.blocks else ""
        real, imaginary = view(parts[..., 0].contiguous()), view(parts[..., 1].contiguous())
        if law.deterministic:
            shaped = task.blocks[index].view(real) if task.blocks and len(task.promised()) == 1 else real
            yield Group(label, law, shaped)
            yield Group(f"{label} imaginary".strip(), laws.constant(0.0), imaginary)
        else:
            yield Group(label, laws.scaled(law, math.sqrt(0.5)), torch.stack([real, imaginary]))


def _without_padding(task: Task, view: Tensor) -> Tensor:
    zero = padding(task.parameter)
    if zero is None or task.rule != "scheme":
        return view
    return view[:, torch.arange(view.shape[1], device=view.device) != zero]


def units(task: Task, values: Tensor) -> Tensor | None:
    """Return the units of a weight, or the entries of a table, as rows; None where rows have no meaning."""
    parameter = task.parameter
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj()).flatten(-2)
    if parameter.kind == "embedding":
        return values
    if parameter.kind in ("token", "position", "relative_position"):
        return values.reshape(-1, values.shape[-1]) if values.dim() > 1 else None
    if not parameter.is_weight:
        return None
    blocks = [block.view(values) for block in task.blocks] if any(b.swapped for b in task.blocks) else [values]
    if isinstance(task.blocks[0].rows, int) and not task.blocks[0].swapped:
        blocks = [values.flatten(0, 1)]
    return torch.cat([block.reshape(block.shape[0], -1) for block in blocks])


def _mirrored(task: Task, values: Tensor) -> float | None:
    # Chrono initialization: the input gate's bias is minus the forget gate's.
    views = {block.label: block.view(values) for block in task.blocks}
    if not {"i", "f"} <= task.gates.keys() or task.gates["f"].deterministic:
        return None
    return float(torch.equal(views["i"], -views["f"]))
