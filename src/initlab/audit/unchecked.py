"""Why an audit checked nothing, which does not count as a success."""

from typing import Any

import pandas as pd

from initlab.inspection import WEIGHT_KINDS

REASONS = {
    "skipped": ("left out by only= or skip=", "leave fewer of them out"),
    "no rule": ("matched by no rule", "add a rule such as '*'"),
    "left alone": ("of kinds that initlab does not know", "say what they are with kinds= (--kind)"),
    "refused": ("not readable", "see their reasons"),
    "empty": ("without elements", "audit the module at its real size"),
    "lawless": ("filled by a scheme that promises no law", "name a scheme of the catalogue"),
}
"""Why a parameter is not checked: the words after a count, and the remedy."""

NOT_CHECKED = "not checked: "
"""Start of the reason of a row that fails because nothing was checked."""

USER_REASONS = ("skipped", "no rule")
"""Reasons that the user gave."""


def unchecked(rows: pd.DataFrame) -> str:
    """Return the sentence that says why nothing was checked, or "" where something was.

    Nothing was checked where no parameter was compared with a promise, and where no weight was although the module
    has some with a promise: norms and biases alone do not show that a scheme was applied.

    >>> from torch import nn
    >>> from .engine import audit
    >>> unchecked(audit(nn.Linear(2, 2), "zeros", skip="*"))
    'nothing was checked: 2 of 2 parameters are left out by only= or skip= (leave fewer of them out)'
    >>> unchecked(audit(nn.BatchNorm1d(2), "zeros"))
    ''
    """
    if not len(rows):
        return "nothing was checked: there are no parameters (give a module or a file that has some)"
    weights = _promised_weights(rows)
    if not rows.checks.any():
        return f"nothing was checked: {_count_reasons(rows)}"
    if weights.any() and not rows.checks[weights].any():
        return f"no weight was checked: {_count_reasons(rows[weights])}"
    return ""


def unchecked_reason(row: Any) -> str:
    """Return the key in `REASONS` of a row that was not checked."""
    if row.scheme in REASONS:
        return row.scheme
    return "empty" if "0" in row["shape"].split("x") else "lawless"


def fails_unchecked(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows fail because nothing was checked, or no weight was."""
    if not unchecked(rows):
        return pd.Series(False, index=rows.index)
    return _promised_weights(rows) if rows.checks.any() else rows.checks == 0


def _promised_weights(rows: pd.DataFrame) -> "pd.Series[bool]":
    # A parameter of an unknown kind may be a weight where it has the shape of one.
    unknown = (rows.scheme == "left alone") & rows["shape"].str.contains("x")
    return (rows.kind.isin(WEIGHT_KINDS) | unknown) & ~rows.scheme.isin(USER_REASONS)


def _count_reasons(rows: pd.DataFrame) -> str:
    counts = pd.Series([unchecked_reason(row) for _, row in rows.iterrows()]).value_counts(sort=False)
    reasons = [f"{count} of {len(rows)} parameters are {REASONS[str(key)][0]}" for key, count in counts.items()]
    remedies = [REASONS[str(key)][1] for key in counts.index]
    return f"{', '.join(reasons)} ({'; '.join(remedies)})"
