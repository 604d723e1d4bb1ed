"""A diagnosis on a terminal: the verdicts first, then one row per layer, in at most 100 columns."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from initlab.diagnostics import Call, Diagnosis
from initlab.diagnostics.frame import HEALTHY, PIPE_WIDTH
from initlab.report.findings.record import Finding
from initlab.system.escape import printable
from initlab.system.numbers import format_number, format_percent
from initlab.system.terminal import SafeConsole

FIRST_ROWS, LAST_ROWS, MAX_ROWS = 6, 3, 24
"""Rows shown at both ends of a longer table, and rows up to which all are."""

MAX_NAMED_LAYERS = 8
"""Layers of one verdict up to which each keeps its row."""

SEVERITY_STYLES = {"fault": "bold red", "warning": "yellow", "note": "cyan"}


def print_diagnosis(title: str, found: Diagnosis, verdicts: Sequence[Finding], every: bool = False) -> None:
    """Print a diagnosis."""
    console = SafeConsole()
    if not console.is_terminal:
        console = SafeConsole(width=PIPE_WIDTH)
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(verdict_grid(verdicts))
    console.print(measured_layer_table(found, verdicts, every))
    console.print(Text(LEGEND, style="dim"))


LEGEND = (
    "q: mean square of the preactivations; c: correlation between two inputs; grad: root mean square of the loss "
    "gradient there; sat, dead: saturated and silent units; rank: effective rank of the weight"
)


def verdict_grid(verdicts: Sequence[Finding]) -> RenderableType:
    """Lay the verdicts out: severity, sentence, and the remedy below it."""
    if not any(verdict.severity != "note" for verdict in verdicts):
        verdicts = [*verdicts, Finding("note", "healthy", (), HEALTHY)]
    return finding_grid(verdicts)


def finding_grid(verdicts: Sequence[Finding]) -> RenderableType:
    """Lay findings out: severity, sentence, and the remedy below it, each remedy once."""
    told: set[str] = set()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for verdict in verdicts:
        lines = [Text(printable(verdict.sentence))]
        if verdict.remedy and verdict.remedy not in told:
            told.add(verdict.remedy)
            lines.append(Text(f"→ {printable(verdict.remedy)}", style="green"))
        label = "" if verdict.name == "healthy" else verdict.severity
        grid.add_row(Text(label, style=SEVERITY_STYLES[verdict.severity]), Group(*lines))
    return grid


def measured_layer_table(found: Diagnosis, verdicts: Sequence[Finding], every: bool) -> Table:
    """Lay one row per call of a layer out; rows in the middle that no verdict names are folded."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("layer", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("weight", no_wrap=True, overflow="ellipsis", max_width=14)
    table.add_column("then", no_wrap=True)
    for name in ("q", "c", "grad", "sat", "dead", "rank"):
        table.add_column(name, justify="right", no_wrap=True)
    few = [v for v in verdicts if v.severity != "note" and len(v.layers) <= MAX_NAMED_LAYERS]
    named = {layer: v.severity for v in reversed(few) for layer in v.layers}
    hidden = 0
    for position, call in enumerate(found.calls):
        ends = position < FIRST_ROWS or position >= len(found.calls) - LAST_ROWS
        loud = call.layer in named
        if every or len(found.calls) <= MAX_ROWS or ends or loud:
            _add_gap(table, hidden)
            hidden = 0
            table.add_row(*_cells(call), style=SEVERITY_STYLES[named[call.layer]] if loud else None)
        else:
            hidden += 1
    return table


def _add_gap(table: Table, hidden: int) -> None:
    if hidden:
        table.add_row("", Text(f"… {hidden} more (--all)", style="dim"), *[""] * 8)


def _cells(call: Call) -> list[Text]:
    stats = call.stats
    shape = "×".join(map(str, call.facts.shape)) if call.facts is not None else ""
    gradient = stats.get("grad_mean_square")
    cells = [
        str(call.index),
        call.layer or "(itself)",
        shape,
        call.activation.name if call.activation is not None else "",
        format_number(stats.get("q")) if call.ran else "never ran",
        f"{stats['c']:.3f}" if "c" in stats else "",
        format_number(math.sqrt(gradient)) if gradient is not None and gradient >= 0 else "",
        format_percent(stats.get("saturated_fraction")),
        format_percent(stats.get("dead_fraction")),
        format_number(stats.get("effective_rank"), digits=4),
    ]
    return [Text(printable(cell)) for cell in cells]
