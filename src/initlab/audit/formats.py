"""The audit's frame as text, as JSON, and as JUnit XML for a CI job."""

import math
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from initlab.audit.unchecked import NOT_CHECKED, unchecked
from initlab.system.escape import json_text, printable

UNPROMISED = ("left alone", "no rule", "skipped")
"""Values of the column `scheme` of parameters without a promise."""


def as_text(rows: pd.DataFrame, every: bool = False) -> str:
    """Return one line per broken parameter (per parameter if `every`), and a last line with counts.

    Args:
        rows: from `audit`.
        every: write a line for every parameter.

    >>> from torch import nn
    >>> from .engine import audit
    >>> print(as_text(audit(nn.BatchNorm1d(3), "he_normal")))
    2 parameters: all as promised
    """
    nothing = printable(unchecked(rows))
    broken = ~rows.ok.astype(bool) & ~rows.reason.str.startswith(NOT_CHECKED)
    shown = rows if every else rows[broken]
    width = max((len(printable(name)) for name in shown.name), default=0)
    lines = []
    row: Any
    for row in shown.itertuples():
        text = printable(f"{row.scheme}, {row.shape}: {row.reason or 'as promised'}")
        lines.append(f"{'ok    ' if row.ok else 'BROKEN'} {printable(row.name):<{width}}  {text}")
    verdict = f"{broken.sum()} not as promised" if broken.any() else "all as promised"
    unpromised = rows.name[rows.scheme.isin(UNPROMISED)]
    if nothing:
        verdict = f"{verdict}; {nothing}" if broken.any() else nothing
    elif len(unpromised):
        names = ", ".join(map(printable, unpromised[:3]))
        names += "" if len(unpromised) <= 3 else f" and {len(unpromised) - 3} more"
        verdict += f"; nothing is promised of {len(unpromised)} ({names})"
    return "\n".join([*lines, f"{len(rows)} parameters: {verdict}"])


def as_json(rows: pd.DataFrame) -> str:
    """Return {"ok": …, "unchecked": …, "parameters": [one object per row]}.

    `unchecked` is the sentence that says why nothing was checked, or null. Missing and non-finite numbers are null.
    """
    return json_text({"ok": passed(rows), "unchecked": unchecked(rows) or None, "parameters": json_records(rows)})


def passed(rows: pd.DataFrame) -> bool:
    """Return whether an audit passes: something was checked, and everything is as promised.

    >>> from torch import nn
    >>> from .engine import audit
    >>> passed(audit(nn.BatchNorm1d(3), "he_normal")), passed(audit(nn.ReLU(), "he_normal"))
    (True, False)
    """
    return bool(rows.ok.all()) and not unchecked(rows)


def json_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries of JSON values.

    >>> json_records(pd.DataFrame({"a": [1.0, float("nan")]}))
    [{'a': 1.0}, {'a': None}]
    """
    plain = rows.astype(object).where(rows.notna(), None)
    return [{str(key): _json_value(value) for key, value in row.items()} for row in plain.to_dict("records")]


def _json_value(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_junit(rows: pd.DataFrame, name: str = "initlab audit") -> str:
    """Return JUnit XML: one test case per parameter, a failure with its reason where a promise is broken.

    Where nothing was checked, one more case fails with the sentence that says why.

    Args:
        rows: from `audit`.
        name: name of the test suite.

    >>> from torch import nn
    >>> from .engine import audit
    >>> as_junit(audit(nn.BatchNorm1d(3), "he_normal")).splitlines()[1]
    '<testsuite name="initlab audit" tests="2" failures="0" errors="0" skipped="0">'
    """
    nothing, name = printable(unchecked(rows)), printable(name)
    ok = rows.ok.astype(bool)
    skipped = rows.scheme.isin(UNPROMISED) & (ok | bool(nothing))
    failed = ~ok & ~skipped
    counts = {"tests": len(rows), "failures": failed.sum(), "errors": 0, "skipped": skipped.sum()}
    if nothing:
        counts |= {"tests": counts["tests"] + 1, "failures": counts["failures"] + 1}
    suite = ElementTree.Element("testsuite", {"name": name} | {key: str(value) for key, value in counts.items()})

    def add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag, attributes)
        element.text = text or None
        return element

    if nothing:
        case = add(suite, "testcase", classname=name, name="(what was checked)")
        add(case, "failure", nothing, message=nothing, type="nothing checked")
    for row, has_failed, is_skipped in zip(rows.itertuples(), failed, skipped, strict=True):
        case, scheme = add(suite, "testcase", classname=name, name=printable(row.name)), printable(row.scheme)
        if has_failed:
            text = f"promised mean {row.promised_mean:.4g}, std {row.promised_std:.4g}; " + (
                f"measured mean {row.mean:.4g}, std {row.std:.4g}; p {row.p:.2g}"
            )
            add(case, "failure", text, message=printable(row.reason), type=scheme)
        elif is_skipped:
            add(case, "skipped", message=scheme)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
