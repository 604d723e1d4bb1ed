"""The audit's frame as text for people, JSON for programs, and JUnit XML for a CI job."""

import math
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from initlab.audit.unchecked import NOT_CHECKED, unchecked
from initlab.system.escape import json_text, printable


def as_text(rows: pd.DataFrame, every: bool = False) -> str:
    """Return one line per broken parameter (per parameter if `every`), and a last line that counts.

    >>> from torch import nn
    >>> from .engine import audit
    >>> print(as_text(audit(nn.BatchNorm1d(3), "he_normal")))
    2 parameters: all as promised
    """
    nothing = unchecked(rows)
    bad = ~rows.ok.astype(bool) & ~rows.reason.str.startswith(NOT_CHECKED)
    shown = rows if every else rows[bad]
    width = max((len(printable(name)) for name in shown.name), default=0)
    lines = [_line(row, width) for row in shown.itertuples()]
    left = rows[rows.scheme.isin(["left alone", "no rule", "skipped"])]
    broken = int(bad.sum())
    verdict = "all as promised" if not broken else f"{broken} not as promised"
    if nothing:
        verdict = f"{verdict}; {printable(nothing)}" if broken else printable(nothing)
    elif len(left):
        names = ", ".join(map(printable, left.name[:3])) + ("" if len(left) <= 3 else f" and {len(left) - 3} more")
        verdict += f"; nothing is promised of {len(left)} ({names})"
    return "\n".join([*lines, f"{len(rows)} parameters: {verdict}"])


def _line(row: Any, width: int) -> str:
    mark = "ok    " if row.ok else "BROKEN"
    told = printable(f"{row.scheme}, {row.shape}: {row.reason or 'as promised'}")
    return f"{mark} {printable(row.name):<{width}}  {told}"


def as_json(rows: pd.DataFrame) -> str:
    """Return {"ok": …, "unchecked": …, "parameters": [one object per row]}.

    `unchecked` is the sentence that says that nothing was checked and why, or null; so is a number that is missing or
    not finite.
    """
    found = {"ok": passed(rows), "unchecked": unchecked(rows) or None, "parameters": json_records(rows)}
    return json_text(found)


def passed(rows: pd.DataFrame) -> bool:
    """Return whether an audit passes: something was checked, and all is as promised.

    >>> from torch import nn
    >>> from .engine import audit
    >>> passed(audit(nn.BatchNorm1d(3), "he_normal")), passed(audit(nn.ReLU(), "he_normal"))
    (True, False)
    """
    return bool(rows.ok.all()) and not unchecked(rows)


def json_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain dictionaries that JSON can hold.

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

    Where nothing was checked, one case more fails with the sentence that says why.

    >>> from torch import nn
    >>> from .engine import audit
    >>> as_junit(audit(nn.BatchNorm1d(3), "he_normal")).splitlines()[1]
    '<testsuite name="initlab audit" tests="2" failures="0" errors="0" skipped="0">'
    """
    nothing = unchecked(rows)
    skipped = rows.scheme.isin(["left alone", "no rule", "skipped"]) & (rows.ok.astype(bool) | bool(nothing))
    bad = ~rows.ok.astype(bool) & ~skipped
    counts = {"tests": len(rows), "failures": int(bad.sum()), "errors": 0, "skipped": int(skipped.sum())}
    if nothing:
        counts |= {"tests": counts["tests"] + 1, "failures": counts["failures"] + 1}
    name = printable(name)
    suite = ElementTree.Element("testsuite", {"name": name} | {key: str(value) for key, value in counts.items()})
    if nothing:
        case = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": "(what was checked)"})
        told = printable(nothing)
        ElementTree.SubElement(case, "failure", {"message": told, "type": "nothing checked"}).text = told
    for row, failed, passed_over in zip(rows.itertuples(), bad, skipped, strict=True):
        case = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": printable(row.name)})
        if failed:
            about = {"message": printable(row.reason), "type": printable(row.scheme)}
            failure = ElementTree.SubElement(case, "failure", about)
            failure.text = f"promised mean {row.promised_mean:.4g}, std {row.promised_std:.4g}; " + (
                f"measured mean {row.mean:.4g}, std {row.std:.4g}; p {row.p:.2g}"
            )
        elif passed_over:
            ElementTree.SubElement(case, "skipped", {"message": printable(row.scheme)})
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
