"""One parameter against what is promised of it: the p-values of every check that applies."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from initlab.initialize import FillTask
from initlab.initialize.plan import padding_row
from initlab.initialize.rows import mean_and_std
from initlab.schemes import Law, laws
from initlab.schemes.law_checks import EXACT_CHECKS, p_values, repeated_units_bound

SAMPLE_SIZE = 2048
"""Elements of each parameter that are compared with other parameters': a reused seed shows in the first of them."""

MIN_BITS = 60
"""Small tensors are compared exactly where chance makes them equal with a probability below 2 to minus this."""


PADDING = "padding"
"""Label of the row of an embedding that stays zero."""


@dataclass(frozen=True)
class CheckedBlock:
    """Elements of a parameter that follow one law: `label` is q, k, v, a gate, a number of a group, or ""."""

    label: str
    law: Law
    values: Tensor


@dataclass
class ParameterCheck:
    """What was found of one parameter; its values are not kept, `task.parameter.values()` gives them again.

    Attributes:
        task: what is promised.
        p: (label, check) -> p; 0 or 1 where a check is exact.
        mean, std: measured.
        sample: its first random elements less their promised mean, to be compared with other parameters' (or None).
        key: its bytes, where it is small and random.
    """

    task: FillTask
    p: dict[tuple[str, str], float] = field(default_factory=dict)
    mean: float = math.nan
    std: float = math.nan
    sample: np.ndarray | None = None
    key: bytes = b""

    @property
    def random(self) -> list[float]:
        """The p-values of checks that chance can fail."""
        return [p for (_, check), p in self.p.items() if check not in EXACT_CHECKS]

    @property
    def checks(self) -> int:
        """How many comparisons with the promise were made; finite values alone show nothing, others break it."""
        return sum(check != "finite" or p == 0 for (_, check), p in self.p.items()) if self.task.is_filled else 0

    def broken(self, alpha: float) -> list[tuple[str, str]]:
        """Return the checks that fail when each random one may give a false alarm with probability `alpha`."""
        return [key for key, p in self.p.items() if (p == 0 if key[1] in EXACT_CHECKS else p < alpha)]


def check_parameter(task: FillTask) -> ParameterCheck:
    """Test one parameter; those without a promise are only asked for finite values."""
    found = ParameterCheck(task)
    if task.parameter.refusal:
        return found
    values = task.parameter.values()
    if not values.numel():
        return found
    found.mean, found.std = mean_and_std(values)
    if not task.is_filled:
        found.p["", "finite"] = float(bool(values.isfinite().all()))
        return found
    parts = checked_blocks(task, values)
    for group in parts:
        for name, p in p_values(group.values, group.law, units=()).items():
            found.p[group.label, name] = p
    _merge_finite_checks(found)
    if task.rule == "scheme" and (zero := padding_row(task.parameter)) is not None:
        found.p[PADDING, "structure"] = float(not bool(values[zero].any()))
    random = [group for group in parts if not group.law.deterministic and not math.isnan(group.law.variance)]
    if random and found.p["", "finite"]:
        rows = units_as_rows(task, values)
        if rows is not None and rows.shape[0] > 1 and rows.shape[1] > 1 and not _has_single_element(random[0]):
            found.p["", "units differ"] = repeated_units_bound(rows, random[0].law)
        if (relation := _mirror_p_value(task, values)) is not None:
            found.p["i", "structure"] = relation
        found.sample, found.key = _sample(random[0], values, alone=bool(task.gates))
    return found


def _has_single_element(group: CheckedBlock) -> bool:
    # An orthogonal 1 x 1 matrix is the gain or minus the gain: depthwise units repeat each other by right.
    law = group.law
    if law.orthogonal is None:
        return False
    return (group.values if law.part is None else law.part(group.values.cpu().double())).numel() == 1


def _sample(group: CheckedBlock, values: Tensor, alone: bool) -> tuple[np.ndarray | None, bytes]:
    law, block = group.law, group.values
    if alone and law.cdf is not None:  # gates of other laws beside it; and this one need not be symmetric
        block = torch.from_numpy(law.cdf(block.double().cpu().numpy()) - 0.5 + law.mean)
    elif law.part is not None:  # what repeats inside a block (mirrored halves) counts once
        block = law.part(block.cpu().double())
    elif not values.is_complex():
        block = values  # in order of storage, as libraries fill them
    first = block.reshape(-1)[:SAMPLE_SIZE].double().cpu().numpy() - law.mean
    if first.size < 2 or float(np.ptp(first)) == 0:
        return None, b""
    bits = 8 if values.element_size() == 2 else 20  # of an element, at the least, where two agree by chance
    telling = bits * values.numel() > MIN_BITS and values.numel() <= SAMPLE_SIZE
    return first, values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if telling else b""


def _merge_finite_checks(found: ParameterCheck) -> None:
    # One entry says that all is finite, however many parts there are.
    finite = [p for (_, name), p in found.p.items() if name == "finite"]
    found.p = {key: p for key, p in found.p.items() if key[1] != "finite"} | {("", "finite"): min(finite)}


def checked_blocks(task: FillTask, values: Tensor) -> list[CheckedBlock]:
    """Return the parts of a parameter that follow one law each."""
    return list(_checked_blocks(task, values))


def _checked_blocks(task: FillTask, values: Tensor) -> Iterator[CheckedBlock]:
    if values.is_complex():
        yield from _complex_blocks(task, values)
        return
    promised = task.promised_laws()
    if not task.blocks or (len(promised) == 1 and len(task.blocks) <= 1):
        blocks = task.blocks
        yield CheckedBlock("", promised[0], _without_padding(task, blocks[0].view(values) if blocks else values))
        return
    independent = task.rule != "scheme" or (task.scheme is not None and task.scheme.elementwise)
    labelled = any(block.label for block in task.blocks)
    if independent and not labelled and all(law is promised[0] for law in promised):
        # Groups of a convolution: one law for all, and independent elements.
        yield CheckedBlock("", promised[0], values)
        return
    if len(promised) == 1:
        yield CheckedBlock("", promised[0], values)
        return
    for index, (block, law) in enumerate(zip(task.blocks, promised, strict=True)):
        yield CheckedBlock(block.label or str(index), law, block.view(values))


def _complex_blocks(task: FillTask, values: Tensor) -> Iterator[CheckedBlock]:
    parts = torch.view_as_real(values.resolve_conj())
    for index, law in enumerate(task.promised_laws()):
        view = task.blocks[index].view if len(task.promised_laws()) > 1 else (lambda tensor: tensor)
        label = task.blocks[index].label or (str(index) if index else "") if task.blocks else ""
        real, imaginary = view(parts[..., 0].contiguous()), view(parts[..., 1].contiguous())
        if law.deterministic:
            shaped = task.blocks[index].view(real) if task.blocks and len(task.promised_laws()) == 1 else real
            yield CheckedBlock(label, law, shaped)
            yield CheckedBlock(f"{label} imaginary".strip(), laws.constant(0.0), imaginary)
        else:
            yield CheckedBlock(label, laws.scale_law(law, math.sqrt(0.5)), torch.stack([real, imaginary]))


def _without_padding(task: FillTask, view: Tensor) -> Tensor:
    zero = padding_row(task.parameter)
    if zero is None or task.rule != "scheme":
        return view
    return view[:, torch.arange(view.shape[1], device=view.device) != zero]


def units_as_rows(task: FillTask, values: Tensor) -> Tensor | None:
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


def _mirror_p_value(task: FillTask, values: Tensor) -> float | None:
    # Chrono initialization: the input gate's bias is minus the forget gate's.
    views = {block.label: block.view(values) for block in task.blocks}
    if not {"i", "f"} <= task.gates.keys() or task.gates["f"].deterministic:
        return None
    return float(torch.equal(views["i"], -views["f"]))
