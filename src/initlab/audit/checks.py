"""Test one parameter against its promise: the p-value of every check that applies."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from initlab.initialize import FillTask
from initlab.initialize.plan import padding_row
from initlab.initialize.rows import mean_and_std
from initlab.inspection import TABLE_KINDS
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
    """Elements of a parameter that follow one law; `label` is q, k, v, a gate, the number of a group, or ""."""

    label: str
    law: Law
    values: Tensor


@dataclass
class ParameterCheck:
    """The results of one parameter's checks, without its values.

    Attributes:
        task: the promise.
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
    def random_p(self) -> list[float]:
        """The p-values of checks that chance can fail."""
        return [p for (_, check), p in self.p.items() if check not in EXACT_CHECKS]

    @property
    def comparisons(self) -> int:
        """The number of comparisons with the promise; that all values are finite counts only where it fails."""
        checks = [check for (_, check), p in self.p.items() if check != "finite" or p == 0]
        return len(checks) if self.task.is_filled else 0

    def failed(self, alpha: float) -> list[tuple[str, str]]:
        """Return the checks that fail when each random one may give a false alarm with probability `alpha`."""
        return [key for key, p in self.p.items() if (p == 0 if key[1] in EXACT_CHECKS else p < alpha)]


def check_parameter(task: FillTask) -> ParameterCheck:
    """Test one parameter; without a promise, only for finite values."""
    result = ParameterCheck(task)
    if task.parameter.refusal:
        return result
    values = task.parameter.values()
    if not values.numel():
        return result
    result.mean, result.std = mean_and_std(values)
    if not task.is_filled:
        result.p["", "finite"] = float(bool(values.isfinite().all()))
        return result
    blocks = checked_blocks(task, values)
    p = {(b.label, check): p for b in blocks for check, p in p_values(b.values, b.law, units=()).items()}
    # One entry for all blocks says whether values are finite.
    finite = min(value for (_, check), value in p.items() if check == "finite")
    result.p = {key: value for key, value in p.items() if key[1] != "finite"} | {("", "finite"): finite}
    if task.rule == "scheme" and (zero := padding_row(task.parameter)) is not None:
        result.p[PADDING, "structure"] = float(not bool(values[zero].any()))
    random = [block for block in blocks if not block.law.deterministic and not math.isnan(block.law.variance)]
    if random and finite:
        rows = units_as_rows(task, values)
        if rows is not None and min(rows.shape) > 1 and not _has_single_element(random[0]):
            result.p["", "units differ"] = repeated_units_bound(rows, random[0].law)
        if (mirrored := _mirror_p_value(task, values)) is not None:
            result.p["i", "structure"] = mirrored
        result.sample, result.key = _sample(random[0], values, gated=bool(task.gates))
    return result


def _has_single_element(block: CheckedBlock) -> bool:
    # An orthogonal 1 x 1 matrix is the gain or minus the gain: depthwise units may repeat each other.
    law = block.law
    if law.orthogonal is None:
        return False
    return (block.values if law.part is None else law.part(block.values.cpu().double())).numel() == 1


def _sample(block: CheckedBlock, values: Tensor, gated: bool) -> tuple[np.ndarray | None, bytes]:
    law, sampled = block.law, block.values
    if gated and law.cdf is not None:  # other gates have other laws, and this one may be asymmetric
        sampled = torch.from_numpy(law.cdf(sampled.double().cpu().numpy()) - 0.5 + law.mean)
    elif law.part is not None:  # repeated parts of a block (mirrored halves) count once
        sampled = law.part(sampled.cpu().double())
    elif not values.is_complex():
        sampled = values  # in order of storage, as libraries fill them
    first = sampled.reshape(-1)[:SAMPLE_SIZE].double().cpu().numpy() - law.mean
    if first.size < 2 or float(np.ptp(first)) == 0:
        return None, b""
    bits = 8 if values.element_size() == 2 else 20  # lower bound of an element's entropy
    if values.numel() > SAMPLE_SIZE or bits * values.numel() <= MIN_BITS:
        return first, b""
    return first, values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def checked_blocks(task: FillTask, values: Tensor) -> list[CheckedBlock]:
    """Return the parts of a parameter that follow one law each.

    Args:
        task: the promise.
        values: the parameter's values as stored.
    """
    return list(_complex_blocks(task, values) if values.is_complex() else _real_blocks(task, values))


def _real_blocks(task: FillTask, values: Tensor) -> Iterator[CheckedBlock]:
    promised, blocks = task.promised_laws(), task.blocks
    # Groups of a convolution have one law, and independent elements.
    independent = task.rule != "scheme" or (task.scheme is not None and task.scheme.elementwise)
    labeled = any(block.label for block in blocks)
    if len(promised) == 1 and len(blocks) <= 1:
        yield CheckedBlock("", promised[0], _without_padding(task, blocks[0].view(values) if blocks else values))
    elif len(promised) == 1 or (independent and not labeled and all(law is promised[0] for law in promised)):
        yield CheckedBlock("", promised[0], values)
    else:
        for index, (block, law) in enumerate(zip(blocks, promised, strict=True)):
            yield CheckedBlock(block.label or str(index), law, block.view(values))


def _complex_blocks(task: FillTask, values: Tensor) -> Iterator[CheckedBlock]:
    parts = torch.view_as_real(values.resolve_conj())
    promised = task.promised_laws()
    for index, law in enumerate(promised):
        block = task.blocks[index] if task.blocks else None
        label = (block.label or (str(index) if index else "")) if block else ""
        real, imaginary = parts[..., 0].contiguous(), parts[..., 1].contiguous()
        if block and (len(promised) > 1 or law.deterministic):
            real, imaginary = block.view(real), block.view(imaginary)
        if law.deterministic:
            yield CheckedBlock(label, law, real)
            yield CheckedBlock(f"{label} imaginary".strip(), laws.constant(0.0), imaginary)
        else:
            yield CheckedBlock(label, laws.scale_law(law, math.sqrt(0.5)), torch.stack([real, imaginary]))


def _without_padding(task: FillTask, view: Tensor) -> Tensor:
    zero = padding_row(task.parameter)
    if zero is None or task.rule != "scheme":
        return view
    return view[:, torch.arange(view.shape[1], device=view.device) != zero]


def units_as_rows(task: FillTask, values: Tensor) -> Tensor | None:
    """Return the units of a weight, or the entries of a table, as rows; None for other parameters.

    Args:
        task: the promise.
        values: the parameter's values as stored.
    """
    parameter, blocks = task.parameter, task.blocks
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj()).flatten(-2)
    if parameter.kind == "embedding":
        return values
    if parameter.kind in TABLE_KINDS:
        return values.reshape(-1, values.shape[-1]) if values.dim() > 1 else None
    if not parameter.is_weight:
        return None
    views = [values]
    if any(block.swapped for block in blocks):
        views = [block.view(values) for block in blocks]
    elif isinstance(blocks[0].rows, int):
        views = [values.flatten(0, 1)]
    return torch.cat([view.reshape(view.shape[0], -1) for view in views])


def _mirror_p_value(task: FillTask, values: Tensor) -> float | None:
    # Chrono initialization: the input gate's bias is minus the forget gate's.
    if not {"i", "f"} <= task.gates.keys() or task.gates["f"].deterministic:
        return None
    views = {block.label: block.view(values) for block in task.blocks}
    return float(torch.equal(views["i"], -views["f"]))
