"""A diagnosis on a terminal: the findings first, then one row per layer, in at most 100 columns."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from initlab.cli.output import output_console
from initlab.diagnostics import STATS, Call, Diagnosis, Stat
from initlab.diagnostics.frame import HEALTHY, PIPE_WIDTH
from initlab.report.findings.record import Finding
from initlab.system.escape import printable

FIRST_ROWS, LAST_ROWS, MAX_ROWS = 6, 3, 24
"""Rows at both ends of a longer table, and the longest table that is shown whole."""

MAX_NAMED_LAYERS = 8
"""Most layers of one finding that each keep their row in a longer table."""

SEVERITY_STYLES = {"fault": "bold red", "warning": "yellow", "note": "cyan"}
LEGEND = (
    "q: mean square of the preactivations; c: correlation between two inputs; grad: root mean square of the loss "
    "gradient there; sat, dead: saturated and silent units; rank: effective rank of the weight"
)


def print_diagnosis(title: str, diagnosis: Diagnosis, findings: Sequence[Finding], every: bool = False) -> None:
    """Print a diagnosis; `every`: with a row for every layer."""
    if not any(finding.severity != "note" for finding in findings):
        findings = [*findings, Finding("note", "healthy", (), HEALTHY)]
    console = output_console(PIPE_WIDTH)
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(finding_grid(findings))
    console.print(measured_layer_table(diagnosis, findings, every))
    console.print(Text(LEGEND, style="dim"))


def finding_grid(findings: Sequence[Finding]) -> Table:
    """Return a grid of findings: severity, sentence, and the remedy below it, each remedy once."""
    remedies = set()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in findings:
        lines = [Text(printable(finding.sentence))]
        if finding.remedy and finding.remedy not in remedies:
            remedies.add(finding.remedy)
            lines.append(Text(f"→ {printable(finding.remedy)}", style="green"))
        label = "" if finding.name == "healthy" else finding.severity
        grid.add_row(Text(label, style=SEVERITY_STYLES[finding.severity]), Group(*lines))
    return grid


def new_layer_table(statistics: Sequence[str], layer_width: int, weight_width: int) -> Table:
    """Return an empty table with the columns index, layer, weight, then, and one per statistic."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("layer", no_wrap=True, overflow="ellipsis", max_width=layer_width)
    table.add_column("weight", no_wrap=True, overflow="ellipsis", max_width=weight_width)
    table.add_column("then", no_wrap=True)
    for name in statistics:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def measured_layer_table(diagnosis: Diagnosis, findings: Sequence[Finding], every: bool) -> Table:
    """Return one row per call of a layer; rows in the middle of a long table that no finding names are left out."""
    table = new_layer_table([stat.column for stat in shown_stats()], layer_width=30, weight_width=14)
    few = [f for f in findings if f.severity != "note" and len(f.layers) <= MAX_NAMED_LAYERS]
    severities = {layer: f.severity for f in reversed(few) for layer in f.layers}
    count, hidden = len(diagnosis.calls), 0
    for position, call in enumerate(diagnosis.calls):
        at_an_end = position < FIRST_ROWS or position >= count - LAST_ROWS
        severity = severities.get(call.layer)
        if not (every or count <= MAX_ROWS or at_an_end or severity):
            hidden += 1
            continue
        if hidden:
            table.add_row("", Text(f"… {hidden} more (--all)", style="dim"), *[""] * (2 + len(shown_stats())))
        hidden = 0
        table.add_row(*_cells(call), style=SEVERITY_STYLES[severity] if severity else None)
    return table


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
