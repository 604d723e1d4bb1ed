"""Why a parameter is called broken, in words with numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from initlab.audit.checks import PADDING, CheckedBlock, ParameterCheck, checked_blocks, units_as_rows
from initlab.audit.likeness import describe_likeness

MAX_NAMES = 3
"""Names that are spelled out before "and so many more"."""


def audit_reasons(
    finding: ParameterCheck, broken: Sequence[tuple[str, str]], twins: Sequence[str], strict: bool
) -> list[str]:
    """Return the sentences that say what is wrong with a parameter; none where all is as promised.

    Args:
        finding: what was found.
        broken: the checks that fail.
        twins: names of parameters with the same draws.
        strict: a parameter without a promise is wrong.
    """
    task = finding.task
    if task.rule == "refused":
        return [task.parameter.refusal]
    said = []
    if broken:
        said += _value_reasons(finding, broken)
    if twins:
        more = f" and {len(twins) - MAX_NAMES} more" if len(twins) > MAX_NAMES else ""
        said.append(f"the same draws as {', '.join(twins[:MAX_NAMES])}{more}")
    if strict and task.rule == "left":
        doubt = f" ({task.parameter.mismatch})" if task.parameter.mismatch else ""
        said.append(f"of a kind that initlab does not know{doubt}: nothing is promised of it")
    if strict and task.rule == "unmatched":
        said.append("no rule matches it: nothing is promised of it")
    return said


def _value_reasons(finding: ParameterCheck, broken: Sequence[tuple[str, str]]) -> list[str]:
    values = finding.task.parameter.values()
    if ("", "finite") in broken:
        count = int((~values.isfinite()).sum())
        return [f"{count} of {values.numel()} values are NaN or infinite"]
    parts = checked_blocks(finding.task, values)
    random = any(not group.law.deterministic for group in parts)
    if random and values.numel() > 1 and bool((values == values.reshape(-1)[0]).all()):
        return [f"every value is {_number_text(values.reshape(-1)[0])} where std {parts[0].law.std:.4g} is promised"]
    looks = describe_likeness(finding.task, parts) if any(at != PADDING for at, _ in broken) else ""
    said = [
        sentence for group in parts if (sentence := _block_reason(group, [c for at, c in broken if at == group.label]))
    ]
    said = [*dict.fromkeys(said)][:MAX_NAMES]
    if (PADDING, "structure") in broken:
        said.append("the row of padding_idx is not zero")
    if ("", "units differ") in broken:
        said.append(_equal_units_reason(finding, values))
    if looks and said:
        said[0] += f"; it looks like {looks}"
    return said or ["it breaks its promise"]


def _block_reason(group: CheckedBlock, checks: Sequence[str]) -> str:
    if not checks:
        return ""
    law, values = group.law, group.values.double()
    where = f"{group.label}: " if group.label else ""
    std = float(values.std(correction=0)) if values.numel() > 1 else 0.0
    if law.distribution == "constant":
        wrong = int((values - law.mean).abs().gt(1e-6 * max(abs(law.mean), 1)).sum())
        return f"{where}{wrong} of {values.numel()} values are not the promised {law.mean:g}"
    off = not 0.99 < std / law.std < 1.01 if law.std else True
    if "orthogonal" in checks or "structure" in checks:
        what = "orthogonal" if "orthogonal" in checks else law.distribution
        return f"{where}not {what} with the promised gain" + (f" (std {_ratio_text(std, law.std)})" if off else "")
    if {"variance", "second moment"} & set(checks) and off:
        return f"{where}std {_ratio_text(std, law.std)}"
    if "support" in checks:
        largest = float(values.abs().max())
        return f"{where}|value| up to {largest:.4g}, outside [{law.support[0]:.4g}, {law.support[1]:.4g}]"
    if "mean" in checks:
        return f"{where}mean {float(values.mean()):.4g} where {law.mean:.4g} is promised"
    if "extremes" in checks:
        low, high = float(values.min()), float(values.max())
        size = values.numel()
        return f"{where}values within [{low:.4g}, {high:.4g}]: too narrow or too wide for {size} of {_law_text(group)}"
    if {"variance", "second moment"} & set(checks):
        return f"{where}std {_ratio_text(std, law.std)}"
    return f"{where}not distributed as {_law_text(group)}"


def _law_text(group: CheckedBlock) -> str:
    return f"a {group.law.distribution.replace('_', ' ')} law of std {group.law.std:.4g}"


def _ratio_text(std: float, promised: float) -> str:
    ratio = f"{std / promised:.4g} × " if promised else "where "
    return f"{std:.4g} is {ratio}the promised {promised:.4g}" if promised else f"{std:.4g} where 0 is promised"


def _number_text(value: Tensor) -> str:
    return f"{complex(value):g}" if value.is_complex() else f"{float(value):g}"


def _equal_units_reason(finding: ParameterCheck, values: Tensor) -> str:
    rows = units_as_rows(finding.task, values)
    assert rows is not None
    count = len(rows) - len(torch.unique(rows.cpu().float(), dim=0))
    return f"{count} of {len(rows)} units repeat another"
