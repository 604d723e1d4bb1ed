"""How a table is written: as text, CSV, Markdown or LaTeX."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from initlab.records.columns import csv_bytes
from initlab.report.study import value_text
from initlab.report.table import ResultTable, TableEntry, is_percentage
from initlab.system.escape import printable
from initlab.system.numbers import format_rounded


def mean_std_text(metric: str, entry: TableEntry, plus_minus: str = " ± ") -> str:
    """Return mean ± std with equal decimals, and n where values are missing; a dash without values, "" without runs.

    >>> mean_std_text("test_accuracy", TableEntry(0.8451, 0.0031, 3, 4))
    '84.5 ± 0.3 (n=3)'
    >>> mean_std_text("loss", TableEntry(0.51234, float("nan"), 1))
    '0.512'
    """
    if not entry.n:
        return "–" if len(entry.runs) else ""
    factor = 100 if is_percentage(metric) else 1
    digits, kind = (3, "f") if abs(entry.mean) >= 1e-3 else (2, "e")
    if is_percentage(metric) or abs(entry.mean) >= 100:
        digits, kind = 1, "f"
    mean, std = (format_rounded(factor * value, digits, kind) for value in (entry.mean, entry.std))
    suffix = f" (n={entry.n})" if entry.n < entry.of else ""
    return (mean if entry.std != entry.std else f"{mean}{plus_minus}{std}") + suffix


def cell_texts(
    table: ResultTable, escape: Callable[[str], str], bold: Callable[[str], str], plus_minus: str = " ± "
) -> list[list[str]]:
    """Return the headings and then every row as texts.

    Args:
        table: the table.
        escape: applied to headings, keys and statuses, which may be any text.
        bold: applied to the best entries.
        plus_minus: stands between mean and std.
    """
    rows = [list(map(escape, [*table.keys, *table.headings]))]
    for line in table.lines:
        row = [*(escape(value_text(value)) for value in line.keys), escape(line.ended)]
        for (metric, _), entry in zip(table.columns, line.entries, strict=True):
            text = mean_std_text(metric, entry, plus_minus)
            row.append(bold(text) if entry.best else text)
        rows.append(row)
    return rows


def table_to_text(table: ResultTable, most: int | None = None) -> str:
    """Return columns that line up; the best entries have a star.

    Args:
        table: the table.
        most: how many rows are written; by default all.
    """
    from initlab.system.terminal import text_width

    left = len(table.keys) + 1
    rows = cell_texts(table, printable, lambda text: f"{text} *")[: None if most is None else most + 1]
    if table.marked:
        rows = [[*row[:left], *(v if v.endswith("*") else f"{v}  " for v in row[left:])] for row in rows]
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]

    def pad(text: str, place: int) -> str:
        space = " " * (widths[place] - text_width(text))
        return text + space if place < left else space + text

    return "\n".join("  ".join(map(pad, row, range(len(row)))).rstrip() for row in rows) + "\n"


def table_to_csv(table: ResultTable) -> str:
    """Return mean, std and n of every column as numbers; no text can start a formula."""
    names = [f"{m}{'' if table.across is None else f' {table.across}={value_text(v)}'}" for m, v in table.columns]
    parts = ("mean", "std", "n", "best")[: 4 if table.marked else 3]
    rows = [[*map(printable, table.keys), table.headings[0], *(f"{name} {part}" for name in names for part in parts)]]
    for line in table.lines:
        row: list[Any] = [value if is_number(value) else value_text(value) for value in line.keys]
        row.append(line.ended)
        for entry in line.entries:
            values = [getattr(entry, part) for part in parts]
            row += [value if is_number(value) else None for value in values]
        rows.append(row)
    return csv_bytes(rows).decode()


def is_number(value: Any) -> bool:
    """Return whether a value is a number and not NaN."""
    return isinstance(value, (int, float, np.number)) and value == value


def table_to_markdown(table: ResultTable) -> str:
    """Return a table of GitHub's Markdown, the best entries in bold; nothing in a name is markup."""
    head, *rows = cell_texts(table, escape_markdown, lambda text: f"**{text}**")
    rule = ["---"] * (len(table.keys) + 1) + ["---:"] * len(table.columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]) + "\n"


def escape_markdown(value: str) -> str:
    r"""Escape what Markdown or HTML would take for markup; underscores inside words are none.

    >>> print(escape_markdown("he_normal | *<b>"))
    he_normal \| \*&lt;b>
    """
    escaped = re.sub(r"([\\|*`\[\]~$#])", r"\\\1", re.sub(r"\s+", " ", printable(value)))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def table_to_latex(table: ResultTable) -> str:
    """Return a booktabs table, the best entries in bold."""
    left = len(table.keys) + 1
    head, *rows = cell_texts(table, escape_latex, lambda text: rf"\mathbf{{{text}}}", r" \pm ")
    for row in rows:
        # A dash is not a formula.
        row[left:] = [f"${text}$" if text not in ("", "–") else text.replace("–", "--") for text in row[left:]]
    head_line, *body = [" & ".join(row) + r" \\" for row in [head, *rows]]
    begin = rf"\begin{{tabular}}{{{'l' * left}{'r' * len(table.columns)}}}"
    lines = [begin, r"\toprule", head_line, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def escape_latex(value: str) -> str:
    r"""Escape what LaTeX would take for commands.

    >>> print(escape_latex("he_normal 50% {x}"))
    he\_normal 50\% \{x\}
    """
    return "".join(_LATEX.get(c, c) for c in re.sub(r"\s+", " ", printable(value)))


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}

FORMATS: dict[str, Callable[[ResultTable], str]] = {
    "text": table_to_text,
    "csv": table_to_csv,
    "markdown": table_to_markdown,
    "latex": table_to_latex,
}
