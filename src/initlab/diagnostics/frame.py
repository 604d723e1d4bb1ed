"""A frame of measured rows that leads with what is wrong: as text, in a notebook, and as plain values."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import pandas as pd

from initlab.report.findings.record import Finding

FINDINGS, FINDINGS_ROWS = "findings", "findings_rows"
COLUMNS = ("severity", "name", "layers", "sentence", "remedy")
COPY_METHODS = ("copy", "deepcopy")
"""Operations of pandas after which a frame still holds all rows that its findings are about."""


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
    def of(cls, rows: pd.DataFrame, verdicts: Sequence[Finding]) -> "DiagnosisFrame":
        """Put rows and verdicts together."""
        made = cls(rows)
        made.attrs[FINDINGS] = [{**asdict(verdict), "layers": list(verdict.layers)} for verdict in verdicts]
        made.attrs[FINDINGS_ROWS] = {"columns": list(rows), "sum": rows_hash(rows)}
        return made

    @property
    def _constructor(self) -> Callable[..., "DiagnosisFrame"]:
        return DiagnosisFrame

    def __finalize__(self, other: Any, method: str | None = None, **kwargs: Any) -> "DiagnosisFrame":
        """Take over what pandas hands on, the findings only where all rows are there."""
        super().__finalize__(other, method=method, **kwargs)  # type: ignore[misc]  # pandas' stubs leave it out
        if method not in COPY_METHODS:
            self.attrs.pop(FINDINGS, None)
            self.attrs.pop(FINDINGS_ROWS, None)
        return self

    @property
    def described(self) -> bool:
        """Whether there are findings, and the rows they are about are all here and as they were."""
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


def with_healthy_sentence(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add a sentence that says so where nothing but notes was found."""
    healthy = {"severity": "", "sentence": HEALTHY, "remedy": ""}
    return [*findings, *([] if any(one["severity"] != "note" for one in findings) else [healthy])]


def findings_text(findings: Sequence[dict[str, Any]]) -> str:
    """Write findings as lines: severity, sentence, and the remedy below it, each remedy once.

    >>> print(findings_text([{"severity": "fault", "sentence": "It is zero.", "remedy": "draw it"}]))
    fault    It is zero.
             → draw it
    """
    lines: list[str] = []
    for one, remedy in zip(shown := with_healthy_sentence(findings), unrepeated_remedies(shown), strict=True):
        lines += wrapped_lines(one["sentence"], f"{one['severity']:9}")
        lines += wrapped_lines(remedy, f"{'':9}→ ") if remedy else []
    return "\n".join(lines)


def wrapped_lines(text: str, head: str) -> list[str]:
    """Fold a text to lines, `head` before the first and as many blanks before the others."""
    blank = " " * len(head)
    return textwrap.wrap(
        text, PIPE_WIDTH, initial_indent=head, subsequent_indent=blank, break_on_hyphens=False, break_long_words=False
    )


def findings_html(findings: Sequence[dict[str, Any]]) -> str:
    """Write findings as a list for a notebook."""
    items = []
    for one, remedy in zip(shown := with_healthy_sentence(findings), unrepeated_remedies(shown), strict=True):
        label = f"<b>{escape(one['severity'])}</b> " if one["severity"] else ""
        cure = f"<br>→ <i>{escape(remedy)}</i>" if remedy else ""
        items.append(f"<li>{label}{escape(one['sentence'])}{cure}</li>")
    return f"<ul>{''.join(items)}</ul>"


def unrepeated_remedies(findings: Sequence[dict[str, Any]]) -> list[str]:
    """Return each finding's remedy, and "" where the same one was told before.

    >>> unrepeated_remedies([{"remedy": "a"}, {"remedy": "a"}])
    ['a', '']
    """
    told = [one["remedy"] for one in findings]
    return [remedy if remedy not in told[:place] else "" for place, remedy in enumerate(told)]


PIPE_WIDTH = 100
"""Columns of a table that goes to a file or a pipe."""


HEALTHY = (
    "Nothing is wrong as far as initlab can tell: no dead, saturated, zero, copied or badly scaled layer, and no "
    "signal or gradient that grows or dies along plain chains of layers."
)
