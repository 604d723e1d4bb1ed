"""A forecast on a terminal: a row per layer and a verdict, or the best cells of a grid."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from initlab.cli.diagnose_screen import finding_grid
from initlab.diagnostics.frame import PIPE_WIDTH
from initlab.prediction import NetworkForecast
from initlab.system import terminal
from initlab.system.escape import printable
from initlab.system.numbers import format_number, format_percent
from initlab.theory.nodes import LayerNode, layer_nodes

MAX_LAYERS = 24
"""Layers up to which all are shown; of more, those at both ends and a few between."""
END_LAYERS = 4
"""Layers shown at either end of a longer table."""
MAX_RANKING_ROWS = 40
"""Lines of a ranking."""

LEGEND = (
    "σw²: fan_in · Var[W]; q: mean square of the preactivations; c: correlation of two inputs; grad²: mean square of "
    "the loss gradient there; sat, dead: saturated and silent units"
)
RANKING_LEGEND = (
    "score = log₁₀ contrast − |gradient|/2, 0 at best; contrast: how much of the difference between two inputs reaches "
    "the last layer; gradient: log₁₀ of its mean square at the first layer over the last; trains to: about 6 ξ_c layers"
)
HEADINGS = {"gradient_range": "gradient", "chi_1": "χ₁", "xi_c": "ξ_c", "trainable_depth": "trains to"}


def wide_console(width: int = PIPE_WIDTH) -> terminal.SafeConsole:
    """Return a console; where the output is not a terminal, as wide as a table may be."""
    found = terminal.SafeConsole()
    return found if found.is_terminal else terminal.SafeConsole(width=width)


def print_outlook(title: str, found: NetworkForecast, every: bool = False) -> None:
    """Print one forecast."""
    out = wide_console()
    out.print(Text(title, style="bold"), soft_wrap=True)
    if not found.frame.empty:
        out.print(predicted_layer_table(found, every))
        if not every and (count := len(layer_nodes(found.nodes))) > MAX_LAYERS:
            out.print(
                Text(f"{count - len(pick_layers(count))} layers between are left out; --all shows them", style="dim")
            )
    if (facts := point_summary(found)) is not None:
        out.print(Text(facts), soft_wrap=True)
    out.print(Text(found.verdict, style="bold" if found.causes else "bold green"), soft_wrap=True)
    if found.causes:
        out.print(finding_grid(found.causes))
    if not found.frame.empty:
        out.print(Text(LEGEND, style="dim"))


def point_summary(found: NetworkForecast) -> str | None:
    """Say phase and depth scales in one line; None where the network is no plain chain.

    >>> point_summary(NetworkForecast(pd.DataFrame(), [], None, ""))
    """
    point = found.point
    if point is None:
        return None
    depth = abs(point.trainable_depth)
    facts = {
        "phase": point.phase,
        "σ_w": f"{point.sigma_w:.4g}",
        "σ_b": f"{point.sigma_b:.4g}",
        "q*": f"{point.q_star:.4g}" + ("" if point.kind == "stable" else f" ({point.kind.replace('_', ' ')})"),
        "χ₁": f"{point.chi_1:.4f}",
        "c*": f"{point.c_star:.4g}",
        "ξ_c": f"{abs(point.xi_c):.4g}",
    }
    if point.kind != "half_stable":  # which depends on where the signal starts, and the verdict says how
        facts["trainable depth"] = f"{depth:.0f}" if math.isfinite(depth) else "any"
    return " · ".join(f"{name} {value}" for name, value in facts.items())


def predicted_layer_table(found: NetworkForecast, every: bool = False) -> Table:
    """Lay one row per layer out; of a deep network the ends and a few layers between."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("layer", no_wrap=True, overflow="ellipsis", max_width=26)
    table.add_column("weight", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column("then", no_wrap=True)
    for name in ("σw²", "q", "c", "grad²", "sat", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    stats = {index: dict(zip(rows["stat"], rows["value"], strict=True)) for index, rows in found.frame.groupby("index")}
    layers = list(enumerate(layer_nodes(found.nodes), start=1))
    kept = set(pick_layers(len(layers))) if not every else set(range(len(layers)))
    left_out = False
    for position, (index, layer) in enumerate(layers):
        if position not in kept:
            left_out = True
            continue
        if left_out:
            table.add_row("", Text("⋮", style="dim"), *[""] * 8)
        left_out = False
        table.add_row(*layer_cells(index, layer, stats.get(index, {})))
    return table


def pick_layers(count: int) -> Sequence[int]:
    """Choose the layers of a long table: both ends, and about eight between.

    >>> pick_layers(3)
    [0, 1, 2]
    >>> len(pick_layers(100)), pick_layers(100)[:5], pick_layers(100)[-5:]
    (17, [0, 1, 2, 3, 13], [93, 96, 97, 98, 99])
    """
    if count <= MAX_LAYERS:
        return list(range(count))
    step = max(1, (count - 2 * END_LAYERS) // 9)
    between = range(END_LAYERS - 1 + step, count - END_LAYERS, step)
    return sorted({*range(END_LAYERS), *between, *range(count - END_LAYERS, count)})


def layer_cells(index: int, layer: LayerNode, stats: dict[str, float]) -> list[Text]:
    """Write one layer's row."""
    wide = layer.variance * layer.fan_in
    texts = [
        str(index),
        layer.name,
        f"{layer.fan_in:g} → {layer.units}",
        layer.act.name if layer.act is not None else "",
        f"{wide:.4g}" if math.isfinite(wide) and layer.mean == 0 else "",
        format_number(stats.get("q"), digits=3),
        f"{stats['c']:.3f}" if "c" in stats else "",
        format_number(stats.get("grad_mean_square")),
        format_percent(stats.get("saturated_fraction")),
        format_percent(stats.get("dead_fraction")),
    ]
    return [Text(printable(text)) for text in texts]


def print_ranking(frame: pd.DataFrame, axes: Sequence[str], every: bool = False) -> None:
    """Print a ranked grid, best first."""
    out = wide_console(terminal.FILE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [*axes, "score", "contrast", "gradient_range", "phase", "chi_1", "xi_c", "trainable_depth"]
    for name in columns:
        words = name in axes and name != "depth"
        table.add_column(HEADINGS.get(name, name), justify="left" if words or name == "phase" else "right")
    shown = frame if every else frame.head(MAX_RANKING_ROWS)
    for row in shown.to_dict("records"):
        table.add_row(*(Text(ranking_entry(name, row[name], row)) for name in columns))
    out.print(table)
    if len(shown) < len(frame):
        out.print(Text(f"… {len(frame) - len(shown)} more (--all)", style="dim"))
    for reason, group in shown.dropna(subset=["reason"]).groupby("reason", sort=False):
        out.print(Text(f"{len(group)} without a score: {reason}", style="dim"))
    out.print(Text(RANKING_LEGEND, style="dim"))


def ranking_entry(name: str, value: object, row: dict) -> str:
    """Write one value of a ranking."""
    if value is None or value != value:
        return "–" if name == "score" else ""
    if name in ("xi_c", "trainable_depth") and isinstance(value, float):
        size = abs(value)
        return "any" if size > 1e4 else f"{size:.0f}" if name == "trainable_depth" else f"{size:.3g}"
    if name == "gradient_range" and isinstance(value, float):
        return f"{value:+.2f}"
    if isinstance(value, float):
        return f"{value:.3f}" if name in ("score", "contrast", "chi_1") and abs(value) < 1000 else f"{value:.4g}"
    return printable(value)
