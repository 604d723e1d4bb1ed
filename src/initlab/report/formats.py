"""How a table is written: as text, CSV, Markdown or LaTeX."""

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.cells import cell_len

from initlab.records.columns import disarm
from initlab.report.study import text
from initlab.report.table import Entry, Table, is_share
from initlab.system.escape import visible
from initlab.system.numbers import rounded


def numbers(metric: str, found: Entry, plus_minus: str = " ± ") -> str:
    """Write mean ± std, both with the same number of decimals; the mean alone for one run, a dash for none.

    >>> numbers("test_accuracy", Entry(0.8451, 0.0031, 3)), numbers("loss", Entry(0.51234, float("nan"), 1))
    ('84.5 ± 0.3', '0.512')
    """
    if not found.n:
        return "–"
    factor = 100 if is_share(metric) else 1
    small = abs(found.mean) < 1e-3
    digits, kind = (1, "f") if is_share(metric) or abs(found.mean) >= 100 else (2, "e") if small else (3, "f")
    mean = rounded(factor * found.mean, digits, kind)
    return mean if found.std != found.std else f"{mean}{plus_minus}{rounded(factor * found.std, digits, kind)}"


def cells(
    table: Table, write: Callable[[str], str], bold: Callable[[str], str], plus_minus: str = " ± "
) -> list[list[str]]:
    """Return every line as texts: keys and how it ended by `write`, numbers as they are, the best ones in bold."""

    def one(column: tuple[str, Any], found: Entry | None) -> str:
        shown = "" if found is None else numbers(column[0], found, plus_minus)
        shown += "" if found is None or not 0 < found.n < found.of else f" (n={found.n})"
        return bold(shown) if found is not None and found.best else shown

    return [
        [
            *(write(text(value)) for value in line.keys),
            write(line.ended),
            *(one(column, found) for column, found in zip(table.columns, line.entries, strict=True)),
        ]
        for line in table.lines
    ]


def headings(table: Table) -> list[str]:
    """Return the headings of all columns."""
    return [*map(visible, table.keys), table.runs, *(table.heading(column) for column in table.columns)]


def as_text(table: Table, most: int | None = None) -> str:
    """Write columns that line up; the best entries have a star."""
    left = len(table.keys) + 1
    lines = [headings(table), *cells(table, visible, lambda shown: f"{shown} *")][: None if most is None else most + 1]
    if table.marked:
        lines = [[*line[:left], *(v if v.endswith("*") else f"{v}  " for v in line[left:])] for line in lines]
    widths = [max(cell_len(line[k]) for line in lines) for k in range(len(lines[0]))]

    def padded(value: str, k: int) -> str:
        space = " " * (widths[k] - cell_len(value))
        return value + space if k < left else space + value

    return "\n".join("  ".join(padded(value, k) for k, value in enumerate(line)).rstrip() for line in lines) + "\n"


def as_csv(table: Table) -> str:
    """Write mean, std and n of every column as numbers; no text can start a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{m}{'' if table.across is None else f' {table.across}={text(v)}'}" for m, v in table.columns]
    parts = ("mean", "std", "n", "best") if table.marked else ("mean", "std", "n")
    values = [f"{head} {part}" for head in heads for part in parts]
    writer.writerow(map(disarm, [*map(visible, table.keys), table.runs, *values]))
    for line in table.lines:
        row: list[Any] = [value if is_number(value) else disarm(text(value)) for value in line.keys]
        row.append(line.ended)
        for found in line.entries:
            told = ["", "", 0, False] if found is None else [blank(found.mean), blank(found.std), found.n, found.best]
            row += told[: len(parts)]
        writer.writerow(row)
    return out.getvalue()


def is_number(value: Any) -> bool:
    """Is it a number that is not blank?"""
    return isinstance(value, (int, float, np.number)) and value == value


def blank(value: float) -> float | str:
    """Return a number, or a blank for none."""
    return value if value == value else ""


def as_markdown(table: Table) -> str:
    """Write a table of GitHub's Markdown, the best entries in bold; nothing in a name is markup."""
    head = [markdown_text(value) for value in headings(table)]
    rule = ["---"] * (len(table.keys) + 1) + ["---:"] * len(table.columns)
    lines = [head, rule, *cells(table, markdown_text, lambda shown: f"**{shown}**")]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown_text(value: str) -> str:
    r"""Escape what Markdown or HTML would take for markup; underscores inside words are none.

    >>> print(markdown_text("he_normal | *<b>"))
    he_normal \| \*&lt;b>
    """
    escaped = re.sub(r"([\\|*`\[\]~$#])", r"\\\1", re.sub(r"\s+", " ", value))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def as_latex(table: Table) -> str:
    """Write a booktabs table, the best entries in bold."""
    columns = "l" * (len(table.keys) + 1) + "r" * len(table.columns)
    first = len(table.keys) + 1
    lines = cells(table, latex_text, lambda shown: rf"\mathbf{{{shown}}}", r" \pm ")
    # A dash is no formula.
    maths = [[*line[:first], *(f"${v}$" if v not in ("", "–") else v.replace("–", "--") for v in line[first:])]
             for line in lines]  # fmt: skip
    body = [" & ".join(line) + r" \\" for line in maths]
    head = " & ".join(latex_text(value) for value in headings(table)) + r" \\"
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex_text(value: str) -> str:
    r"""Escape what LaTeX would take for commands.

    >>> print(latex_text("he_normal 50% {x}"))
    he\_normal 50\% \{x\}
    """
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
             ">": r"\textgreater{}", "|": r"\textbar{}"}  # fmt: skip
    return "".join(named.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in re.sub(r"\s+", " ", value))


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": as_text,
    "csv": as_csv,
    "markdown": as_markdown,
    "latex": as_latex,
}
