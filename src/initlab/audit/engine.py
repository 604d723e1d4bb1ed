"""Audit a module or its saved values: one row per parameter, promised beside measured, and a verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from initlab.audit.checks import ParameterCheck, check_parameter
from initlab.audit.duplicates import find_duplicates
from initlab.audit.likeness import is_default
from initlab.audit.reasons import audit_reasons
from initlab.audit.sources import load_values, module_from_values
from initlab.audit.unchecked import NOT_CHECKED, REASONS, fails_unchecked, unchecked_reason
from initlab.audit.weight_files import extract_state_dict, load_weight_file
from initlab.errors import UserError
from initlab.initialize import FillPlan, Spec, plan, request
from initlab.initialize.rows import make_frame, promise_row

FALSE_ALARM_RATE = 1e-3
"""Probability that some parameter of a correctly initialized model is called broken."""

PAIRS_SHARE = 0.1
"""Share of it that goes to the comparison of layers with each other."""

COLUMNS = (
    "name",
    "kind",
    "role",
    "shape",
    "fan_in",
    "fan_out",
    "scheme",
    "promised_mean",
    "promised_std",
    "mean",
    "std",
    "checks",
    "p",
    "ok",
    "default",
    "tied",
    "reason",
)


def audit(
    model: nn.Module | Mapping[str, Tensor] | str | Path,
    promise: Spec | Mapping[str, Spec],
    *,
    module: nn.Module | None = None,
    strict: bool = False,
    alpha: float = FALSE_ALARM_RATE,
    **arguments: Any,
) -> pd.DataFrame:
    """Say of every parameter whether it is initialized as promised, and if not, what it looks like instead.

    Each parameter is tested against the law of its scheme with its own fans: mean, exact χ² of the variance, extremes
    (they show clipping), Kolmogorov–Smirnov; Gram matrices of orthogonal weights; patterns and constants exactly; no
    two layers with the same draws, no two equal units. 16-bit weights are tested against the rounded law. A random
    check fails where its p is below `alpha` divided by the number of all of them, so that a correct model is called
    broken with probability `alpha` at most.

    Args:
        model: a module; a state_dict; or the path of a .safetensors file or of one that torch.save wrote.
        promise: what `initialize_` was asked for: a scheme's name, record, (name, {key: value}), or {glob: …}.
        module: the module whose state_dict `model` is. Without it kinds are read off names and shapes: 4-d tensors
            are convolutions of one group, 2-d ones dense layers.
        strict: call broken what is left alone: parameters of unknown kinds and those that no rule matches.
        alpha: the false-alarm rate for the whole model.
        arguments: those of `initialize_` that decide what is promised: act, gain, sigma_b, roles, parameters, only,
            skip, kinds, forget_bias, chrono.

    Returns:
        A frame with columns name, kind, role, shape, fan_in, fan_out, scheme, promised_mean, promised_std, mean, std,
        checks (how many comparisons with the promise were made), p (adjusted for the number of checks: below `alpha`
        is broken), ok, default (looks like torch's own law, never touched), tied (other names), reason (empty where
        all is well). Where nothing was checked (`initlab.audit.unchecked` says why), no row is ok.

    Raises:
        UserError: a promise that cannot be kept by this module, a glob without a match, values that are missing.

    >>> from initlab import initialize_
    >>> net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20))
    >>> rows = initialize_(net, "he_normal", skip="2.*")
    >>> audit(net, "he_normal")[["name", "ok"]].values.tolist()
    [['0.weight', True], ['0.bias', True], ['2.weight', False], ['2.bias', False]]
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha} must be a probability between 0 and 1.")
    tasks = _plan_audit(model, promise, module, arguments)
    findings = [check_parameter(task) for task in tasks]
    return _make_frame(findings, alpha, strict)


def _plan_audit(
    model: nn.Module | Mapping[str, Tensor] | str | Path,
    promise: Spec | Mapping[str, Spec],
    module: nn.Module | None,
    arguments: Mapping[str, Any],
) -> FillPlan:
    wanted = request(promise, **arguments)
    if not isinstance(model, nn.Module):
        values = (
            load_weight_file(Path(model))
            if isinstance(model, (str, Path))
            else extract_state_dict(model, "the mapping")
        )
        model = module_from_values(values) if module is None else load_values(module, values)
    tasks = plan(model, wanted, refuse=False)
    for task in tasks:
        if task.parameter.tensor.is_meta:
            raise UserError(f"{task.parameter.name} is on the meta device and has no values to audit.")
    return tasks


def _make_frame(findings: Sequence[ParameterCheck], alpha: float, strict: bool) -> pd.DataFrame:
    checks = max(sum(len(found.random) for found in findings), 1)
    each = (1 - PAIRS_SHARE) * alpha / checks
    twins = find_duplicates(findings, PAIRS_SHARE * alpha)
    names = [found.task.parameter.name for found in findings]
    rows = []
    for index, found in enumerate(findings):
        broken = found.broken(each)
        said = audit_reasons(found, broken, [names[other] for other in twins.get(index, [])], strict)
        p = min((found.p[key] for key in broken), default=min(found.random, default=1.0))
        default = bool(broken) and is_default(found.task.parameter)
        tied = ", ".join(found.task.parameter.aliases)
        rows.append(
            (
                *promise_row(found.task),
                found.mean,
                found.std,
                found.checks,
                min(1.0, p * alpha / each),
                not said,
                default,
                tied,
                "; ".join(said),
            )
        )
    frame = make_frame(rows, COLUMNS)
    for index in frame.index[fails_unchecked(frame) & frame.ok.astype(bool)]:
        doubt = findings[index].task.parameter.mismatch
        reason = f"{NOT_CHECKED}it is {REASONS[unchecked_reason(frame.loc[index])][0]}" + (
            f" ({doubt})" if doubt else ""
        )
        frame.loc[index, ["ok", "reason"]] = False, reason
    return frame
