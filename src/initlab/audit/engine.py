"""Audit a module or its saved values: one row per parameter, promised beside measured, with a verdict."""

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
from initlab.initialize import Spec, plan, request
from initlab.initialize.plan import FillPlan
from initlab.initialize.rows import PROMISE_COLUMNS, make_frame, promise_row

FALSE_ALARM_RATE = 1e-3
"""Probability that some parameter of a correctly initialized model is called broken."""

PAIRS_SHARE = 0.1
"""Share of that probability for the comparison of layers with each other."""

COLUMNS = (*PROMISE_COLUMNS, "mean", "std", "checks", "p", "ok", "default", "tied", "reason")


def audit(
    model: nn.Module | Mapping[str, Tensor] | str | Path,
    promise: Spec | Mapping[str, Spec],
    *,
    module: nn.Module | None = None,
    strict: bool = False,
    alpha: float = FALSE_ALARM_RATE,
    **arguments: Any,
) -> pd.DataFrame:
    """Test whether every parameter is initialized as promised, and if not, what it looks like instead.

    Each parameter is tested against the law of its scheme with its own fans: mean, exact χ² of the variance, extremes
    (they show clipping), Kolmogorov–Smirnov; Gram matrices of orthogonal weights; patterns and constants exactly; no
    two layers with the same draws, no two equal units. 16-bit weights are tested against the rounded law. A random
    check fails where its p is below `alpha` divided by the number of all of them, so that a correct model is called
    broken with probability `alpha` at most.

    Args:
        model: a module; a state_dict; or the path of a .safetensors file or of one that torch.save wrote.
        promise: the scheme given to `initialize_`: a name, a record, (name, {key: value}), or {glob: …}.
        module: the module whose state_dict `model` is. Without it kinds are read off names and shapes: 4-d tensors
            are convolutions of one group, 2-d ones dense layers.
        strict: also call parameters of unknown kinds, and those that no rule matches, broken.
        alpha: the false-alarm rate for the whole model.
        **arguments: those of `initlab.initialize.request`: act, gain, sigma_b, roles, parameters, only, skip, kinds,
            forget_bias, chrono.

    Returns:
        A frame with columns name, kind, role, shape, fan_in, fan_out, scheme, promised_mean, promised_std, mean, std,
        checks (the number of comparisons with the promise), p (adjusted for the number of checks: below `alpha`
        is broken), ok, default (looks like torch's own law, never touched), tied (other names), reason (empty where
        ok). Where nothing was checked (`initlab.audit.unchecked` says why), no row is ok.

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
    checks = [check_parameter(task) for task in _plan_audit(model, promise, module, arguments)]
    return _make_frame(checks, alpha, strict)


def _plan_audit(
    model: nn.Module | Mapping[str, Tensor] | str | Path,
    promise: Spec | Mapping[str, Spec],
    module: nn.Module | None,
    arguments: Mapping[str, Any],
) -> FillPlan:
    asked = request(promise, **arguments)
    if not isinstance(model, nn.Module):
        if isinstance(model, (str, Path)):
            values = load_weight_file(Path(model))
        else:
            values = extract_state_dict(model, "the mapping")
        model = module_from_values(values) if module is None else load_values(module, values)
    tasks = plan(model, asked, refuse=False)
    for task in tasks:
        if task.parameter.tensor.is_meta:
            raise UserError(f"{task.parameter.name} is on the meta device and has no values to audit.")
    return tasks


def _make_frame(checks: Sequence[ParameterCheck], alpha: float, strict: bool) -> pd.DataFrame:
    alpha_each = (1 - PAIRS_SHARE) * alpha / max(sum(len(check.random_p) for check in checks), 1)
    duplicates = find_duplicates(checks, PAIRS_SHARE * alpha)
    names = [check.task.parameter.name for check in checks]
    rows = []
    for index, check in enumerate(checks):
        parameter, failed = check.task.parameter, check.failed(alpha_each)
        reasons = audit_reasons(check, failed, [names[other] for other in duplicates.get(index, [])], strict)
        p = min((check.p[key] for key in failed), default=min(check.random_p, default=1.0))
        measured = (check.mean, check.std, check.comparisons, min(1.0, p * alpha / alpha_each))
        default = bool(failed) and is_default(parameter)
        verdict = (not reasons, default, ", ".join(parameter.aliases), "; ".join(reasons))
        rows.append((*promise_row(check.task), *measured, *verdict))
    frame = make_frame(rows, COLUMNS)
    for index in frame.index[fails_unchecked(frame) & frame.ok.astype(bool)]:
        mismatch = checks[index].task.parameter.mismatch
        kind = REASONS[unchecked_reason(frame.loc[index])][0]
        reason = f"{NOT_CHECKED}it is {kind}" + (f" ({mismatch})" if mismatch else "")
        frame.loc[index, ["ok", "reason"]] = False, reason
    return frame
