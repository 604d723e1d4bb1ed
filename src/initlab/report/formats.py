"""How a table is written: as text, CSV, Markdown or LaTeX."""

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.cells import cell_len

from initlab.records.columns import escape_formula
from initlab.report.study import value_text
from initlab.report.table import ResultTable, TableEntry, is_percentage
from initlab.system.escape import printable
from initlab.system.numbers import format_rounded


def mean_std_text(metric: str, found: TableEntry, plus_minus: str = " ± ") -> str:
    """Write mean ± std, both with the same number of decimals; the mean alone for one run, a dash for none.

    >>> mean_std_text("test_accuracy", TableEntry(0.8451, 0.0031, 3)), mean_std_text("loss", TableEntry(0.51234, float("nan"), 1))
    ('84.5 ± 0.3', '0.512')
    """
    if not found.n:
        return "–"
    factor = 100 if is_percentage(metric) else 1
    small = abs(found.mean) < 1e-3
    digits, kind = (1, "f") if is_percentage(metric) or abs(found.mean) >= 100 else (2, "e") if small else (3, "f")
    mean = format_rounded(factor * found.mean, digits, kind)
    return mean if found.std != found.std else f"{mean}{plus_minus}{format_rounded(factor * found.std, digits, kind)}"


def cell_texts(
    table: ResultTable, write: Callable[[str], str], bold: Callable[[str], str], plus_minus: str = " ± "
) -> list[list[str]]:
    """Return every line as texts: keys and how it ended by `write`, numbers as they are, the best ones in bold."""

    def one(column: tuple[str, Any], found: TableEntry | None) -> str:
        shown = "" if found is None else mean_std_text(column[0], found, plus_minus)
        shown += "" if found is None or not 0 < found.n < found.of else f" (n={found.n})"
        return bold(shown) if found is not None and found.best else shown

    return [
        [
            *(write(value_text(value)) for value in line.keys),
            write(line.ended),
            *(one(column, found) for column, found in zip(table.columns, line.entries, strict=True)),
        ]
        for line in table.lines
    ]


def column_headings(table: ResultTable) -> list[str]:
    """Return the headings of all columns."""
    return [*map(printable, table.keys), table.runs, *(table.heading(column) for column in table.columns)]


def table_to_text(table: ResultTable, most: int | None = None) -> str:
    """Write columns that line up; the best entries have a star."""
    left = len(table.keys) + 1
    lines = [column_headings(table), *cell_texts(table, printable, lambda shown: f"{shown} *")][
        : None if most is None else most + 1
    ]
    if table.marked:
        lines = [[*line[:left], *(v if v.endswith("*") else f"{v}  " for v in line[left:])] for line in lines]
    widths = [max(cell_len(line[k]) for line in lines) for k in range(len(lines[0]))]

    def padded(value: str, k: int) -> str:
        space = " " * (widths[k] - cell_len(value))
        return value + space if k < left else space + value

    return "\n".join("  ".join(padded(value, k) for k, value in enumerate(line)).rstrip() for line in lines) + "\n"


def table_to_csv(table: ResultTable) -> str:
    """Write mean, std and n of every column as numbers; no text can start a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{m}{'' if table.across is None else f' {table.across}={value_text(v)}'}" for m, v in table.columns]
    parts = ("mean", "std", "n", "best") if table.marked else ("mean", "std", "n")
    values = [f"{head} {part}" for head in heads for part in parts]
    writer.writerow(map(escape_formula, [*map(printable, table.keys), table.runs, *values]))
    for line in table.lines:
        row: list[Any] = [value if is_number(value) else escape_formula(value_text(value)) for value in line.keys]
        row.append(line.ended)
        for found in line.entries:
            told = (
                ["", "", 0, False]
                if found is None
                else [blank_if_nan(found.mean), blank_if_nan(found.std), found.n, found.best]
            )
            row += told[: len(parts)]
        writer.writerow(row)
    return out.getvalue()


def is_number(value: Any) -> bool:
    """Is it a number that is not blank?"""
    return isinstance(value, (int, float, np.number)) and value == value


def blank_if_nan(value: float) -> float | str:
    """Return a number, or a blank for none."""
    return value if value == value else ""


def table_to_markdown(table: ResultTable) -> str:
    """Write a table of GitHub's Markdown, the best entries in bold; nothing in a name is markup."""
    head = [escape_markdown(value) for value in column_headings(table)]
    rule = ["---"] * (len(table.keys) + 1) + ["---:"] * len(table.columns)
    lines = [head, rule, *cell_texts(table, escape_markdown, lambda shown: f"**{shown}**")]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def escape_markdown(value: str) -> str:
    r"""Escape what Markdown or HTML would take for markup; underscores inside words are none.

    >>> print(escape_markdown("he_normal | *<b>"))
    he_normal \| \*&lt;b>
    """
    escaped = re.sub(r"([\\|*`\[\]~$#])", r"\\\1", re.sub(r"\s+", " ", value))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def table_to_latex(table: ResultTable) -> str:
    """Write a booktabs table, the best entries in bold."""
    columns = "l" * (len(table.keys) + 1) + "r" * len(table.columns)
    first = len(table.keys) + 1
    lines = cell_texts(table, escape_latex, lambda shown: rf"\mathbf{{{shown}}}", r" \pm ")
    # A dash is no formula.
    maths = [[*line[:first], *(f"${v}$" if v not in ("", "–") else v.replace("–", "--") for v in line[first:])]
             for line in lines]  # fmt: skip
    body = [" & ".join(line) + r" \\" for line in maths]
    head = " & ".join(escape_latex(value) for value in column_headings(table)) + r" \\"
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


def escape_latex(value: str) -> str:
    r"""Escape what LaTeX would take for commands.

    >>> print(escape_latex("he_normal 50% {x}"))
    he\_normal 50\% \{x\}
    """
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
             ">": r"\textgreater{}", "|": r"\textbar{}"}  # fmt: skip
    return "".join(named.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in re.sub(r"\s+", " ", value))


FORMATS: dict[str, Callable[[ResultTable], str]] = {
    "text": table_to_text,
    "csv": table_to_csv,
    "markdown": table_to_markdown,
    "latex": table_to_latex,
}
