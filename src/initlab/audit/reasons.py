"""Why a parameter is called broken, in words with numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from initlab.audit.checks import PADDING, CheckedBlock, ParameterCheck, checked_blocks, units_as_rows
from initlab.audit.likeness import describe_likeness
from initlab.schemes import Law

MAX_NAMES = 3
"""Names, and reasons, that are written out."""


def audit_reasons(
    check: ParameterCheck, failed: Sequence[tuple[str, str]], duplicates: Sequence[str], strict: bool
) -> list[str]:
    """Return the sentences that say what is wrong with a parameter; [] where it is as promised.

    Args:
        check: the parameter's results.
        failed: the checks that fail.
        duplicates: names of parameters with the same draws.
        strict: a parameter without a promise is wrong.
    """
    task = check.task
    if task.rule == "refused":
        return [task.parameter.refusal]
    reasons = _value_reasons(check, failed) if failed else []
    if duplicates:
        more = f" and {len(duplicates) - MAX_NAMES} more" if len(duplicates) > MAX_NAMES else ""
        reasons.append(f"the same draws as {', '.join(duplicates[:MAX_NAMES])}{more}")
    if strict and task.rule == "left":
        mismatch = f" ({task.parameter.mismatch})" if task.parameter.mismatch else ""
        reasons.append(f"of a kind that initlab does not know{mismatch}: nothing is promised of it")
    if strict and task.rule == "unmatched":
        reasons.append("no rule matches it: nothing is promised of it")
    return reasons


def _value_reasons(check: ParameterCheck, failed: Sequence[tuple[str, str]]) -> list[str]:
    values = check.task.parameter.values()
    if ("", "finite") in failed:
        count = int((~values.isfinite()).sum())
        return [f"{count} of {values.numel()} values are NaN or infinite"]
    blocks = checked_blocks(check.task, values)
    random = any(not block.law.deterministic for block in blocks)
    first = values.reshape(-1)[0].item()
    if random and values.numel() > 1 and bool((values == first).all()):
        return [f"every value is {first:g} where std {blocks[0].law.std:.4g} is promised"]
    likeness = describe_likeness(check.task, blocks) if any(label != PADDING for label, _ in failed) else ""
    sentences = [_block_reason(block, {name for label, name in failed if label == block.label}) for block in blocks]
    reasons = [*dict.fromkeys(filter(None, sentences))][:MAX_NAMES]
    if (PADDING, "structure") in failed:
        reasons.append("the row of padding_idx is not zero")
    if ("", "units differ") in failed:
        rows = units_as_rows(check.task, values)
        assert rows is not None
        repeated = len(rows) - len(torch.unique(rows.cpu().float(), dim=0))
        reasons.append(f"{repeated} of {len(rows)} units repeat another")
    if likeness and reasons:
        reasons[0] += f"; it looks like {likeness}"
    return reasons or ["it breaks its promise"]


def _block_reason(block: CheckedBlock, failed: set[str]) -> str:
    if not failed:
        return ""
    law, values = block.law, block.values.double()
    reason = _reason(law, values, failed)
    return f"{block.label}: {reason}" if block.label else reason


def _reason(law: Law, values: Tensor, failed: set[str]) -> str:
    std, count = float(values.std(correction=0)) if values.numel() > 1 else 0.0, values.numel()
    if law.distribution == "constant":
        wrong = int((values - law.mean).abs().gt(1e-6 * max(abs(law.mean), 1)).sum())
        return f"{wrong} of {count} values are not the promised {law.mean:g}"
    off = not 0.99 < std / law.std < 1.01 if law.std else True
    ratio = f"{std:.4g} where 0 is promised"
    if law.std:
        ratio = f"{std:.4g} is {std / law.std:.4g} × the promised {law.std:.4g}"
    if {"orthogonal", "structure"} & failed:
        kind = "orthogonal" if "orthogonal" in failed else law.distribution
        return f"not {kind} with the promised gain" + (f" (std {ratio})" if off else "")
    spread = bool({"variance", "second moment"} & failed)
    if spread and off:
        return f"std {ratio}"
    low, high = float(values.min()), float(values.max())
    if "support" in failed:
        return f"|value| up to {max(-low, high):.4g}, outside [{law.support[0]:.4g}, {law.support[1]:.4g}]"
    if "mean" in failed:
        return f"mean {float(values.mean()):.4g} where {law.mean:.4g} is promised"
    described = f"a {law.distribution.replace('_', ' ')} law of std {law.std:.4g}"
    if "extremes" in failed:
        return f"values within [{low:.4g}, {high:.4g}]: too narrow or too wide for {count} of {described}"
    return f"std {ratio}" if spread else f"not distributed as {described}"
