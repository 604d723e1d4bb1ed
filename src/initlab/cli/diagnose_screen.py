"""A diagnosis on a terminal: the verdicts first, then one row per layer, in at most 100 columns."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from initlab.diagnostics import STATS, Call, Diagnosis, Stat
from initlab.diagnostics.frame import HEALTHY, PIPE_WIDTH
from initlab.report.findings.record import Finding
from initlab.system.escape import printable
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
    for stat in shown_stats():
        table.add_column(stat.column, justify="right", no_wrap=True)
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
        table.add_row("", Text(f"… {hidden} more (--all)", style="dim"), *[""] * (2 + len(shown_stats())))


def shown_stats() -> list[Stat]:
    """Return the statistics that have a column in the table."""
    return [stat for stat in STATS.values() if stat.column]


def _cells(call: Call) -> list[Text]:
    statistics = [stat.show(call.stats[stat.name]) if stat.name in call.stats else "" for stat in shown_stats()]
    if not call.ran:
        statistics[0] = "never ran"
    cells = [
        str(call.index),
        call.layer or "(itself)",
        "×".join(map(str, call.facts.shape)) if call.facts is not None else "",
        call.activation.name if call.activation is not None else "",
        *statistics,
    ]
    return [Text(printable(cell)) for cell in cells]
