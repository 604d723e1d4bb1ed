"""A frame of measured rows that shows its findings first: as text, in a notebook, and as plain values."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from html import escape
from typing import Any

import pandas as pd

from initlab.report.findings.record import Finding

FINDINGS, FINDINGS_ROWS = "findings", "findings_rows"
COLUMNS = ("severity", "name", "layers", "sentence", "remedy")
COPY_METHODS = ("copy", "deepcopy")
"""Operations of pandas after which a frame still holds all rows of its findings."""


class DiagnosisFrame(pd.DataFrame):
    """The rows of a diagnosis with its findings, shown first.

    A copy keeps the findings; a selection, or any other frame made of this one, is shown as rows alone, because the
    findings are about the whole.

    >>> rows = pd.DataFrame({"stat": ["q", "c"], "value": [0.0, 1.0]})
    >>> frame = DiagnosisFrame.of(rows, [Finding("fault", "zero_layer", ("a",), "Layer a is all zeros.", "draw it")])
    >>> print(frame)
    fault    Layer a is all zeros.
             → draw it
    <BLANKLINE>
      stat  value
    0    q    0.0
    1    c    1.0
    >>> len(frame.copy().findings), len(frame[frame.stat == "q"].findings)
    (1, 0)
    """

    @classmethod
    def of(cls, rows: pd.DataFrame, findings: Sequence[Finding]) -> "DiagnosisFrame":
        """Put rows and findings together."""
        frame = cls(rows)
        frame.attrs[FINDINGS] = [{**asdict(finding), "layers": list(finding.layers)} for finding in findings]
        frame.attrs[FINDINGS_ROWS] = {"columns": list(rows), "sum": rows_hash(rows)}
        return frame

    @property
    def _constructor(self) -> Callable[..., "DiagnosisFrame"]:
        return DiagnosisFrame

    def __finalize__(self, other: Any, method: str | None = None, **kwargs: Any) -> "DiagnosisFrame":
        """Take over the attributes of another frame, the findings only where all rows are there."""
        super().__finalize__(other, method=method, **kwargs)  # type: ignore[misc]  # pandas' stubs leave it out
        if method not in COPY_METHODS:
            self.attrs.pop(FINDINGS, None)
            self.attrs.pop(FINDINGS_ROWS, None)
        return self

    @property
    def described(self) -> bool:
        """Whether there are findings, and their rows are all here and unchanged."""
        about = self.attrs.get(FINDINGS_ROWS)
        if about is None or not set(about["columns"]) <= set(self.columns):
            return False
        return rows_hash(pd.DataFrame(self)[about["columns"]]) == about["sum"]

    @property
    def findings(self) -> pd.DataFrame:
        """One row per finding: severity, name, layers, sentence, remedy; worst first, empty where nothing is wrong."""
        return pd.DataFrame(self.attrs[FINDINGS] if self.described else [], columns=list(COLUMNS))

    def __repr__(self) -> str:
        """Return the findings and the rows as text."""
        rows = super().__repr__()
        return rows if not self.described else f"{findings_text(self.attrs[FINDINGS])}\n\n{rows}"

    def _repr_html_(self) -> str | None:
        rows: str | None = super()._repr_html_()  # type: ignore[misc]
        return rows if rows is None or not self.described else f"{findings_html(self.attrs[FINDINGS])}\n{rows}"


def rows_hash(rows: pd.DataFrame) -> int:
    """Return a number that changes with the rows of a frame."""
    return int(pd.util.hash_pandas_object(rows).sum())


def shown_findings(findings: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return severity, sentence and remedy of findings, each remedy once; `HEALTHY` if all are notes.

    >>> one = {"severity": "fault", "sentence": "It is zero.", "remedy": "draw it"}
    >>> shown_findings([one, one])[1]
    ('fault', 'It is zero.', '')
    """
    shown: list[tuple[str, str, str]] = []
    for one in findings:
        remedy = "" if any(one["remedy"] == earlier for _, _, earlier in shown) else one["remedy"]
        shown.append((one["severity"], one["sentence"], remedy))
    return shown if any(severity != "note" for severity, _, _ in shown) else [*shown, ("", HEALTHY, "")]


def findings_text(findings: Sequence[dict[str, Any]]) -> str:
    """Write findings as lines: severity, sentence, and the remedy below it.

    >>> print(findings_text([{"severity": "fault", "sentence": "It is zero.", "remedy": "draw it"}]))
    fault    It is zero.
             → draw it
    """
    wrap = partial(textwrap.wrap, width=PIPE_WIDTH, break_on_hyphens=False, break_long_words=False)
    lines: list[str] = []
    for severity, sentence, remedy in shown_findings(findings):
        lines += wrap(sentence, initial_indent=f"{severity:9}", subsequent_indent=" " * 9)
        lines += wrap(remedy, initial_indent=f"{'':9}→ ", subsequent_indent=" " * 11)
    return "\n".join(lines)


def findings_html(findings: Sequence[dict[str, Any]]) -> str:
    """Write findings as a list for a notebook."""
    items = []
    for severity, sentence, remedy in shown_findings(findings):
        label = f"<b>{escape(severity)}</b> " if severity else ""
        last = f"<br>→ <i>{escape(remedy)}</i>" if remedy else ""
        items.append(f"<li>{label}{escape(sentence)}{last}</li>")
    return f"<ul>{''.join(items)}</ul>"


PIPE_WIDTH = 100
"""Columns of a table that goes to a file or a pipe."""

HEALTHY = (
    "Nothing is wrong as far as initlab can tell: no dead, saturated, zero, copied or badly scaled layer, and no "
    "signal or gradient that grows or dies along plain chains of layers."
)
