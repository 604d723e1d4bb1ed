"""A forecast on a terminal: a row per layer and the verdict, or the best networks of a grid."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from initlab.cli.diagnose_screen import finding_grid, new_layer_table
from initlab.cli.output import output_console
from initlab.diagnostics.frame import PIPE_WIDTH
from initlab.prediction import NetworkForecast
from initlab.system.escape import printable
from initlab.system.numbers import format_number, format_percent
from initlab.theory.nodes import LayerNode, layer_nodes

MAX_LAYERS = 24
"""The deepest network whose layers are all shown; of a deeper one both ends and a few between."""
END_LAYERS = 4
"""Layers shown at either end of a longer table."""
MAX_RANKING_ROWS = 40

LEGEND = (
    "σw²: fan_in · Var[W]; q: mean square of the preactivations; c: correlation of two inputs; grad²: mean square of "
    "the loss gradient there; sat, dead: saturated and silent units"
)
RANKING_LEGEND = (
    "score = log₁₀ contrast − |gradient|/2, 0 at best; contrast: how much of the difference between two inputs reaches "
    "the last layer; gradient: log₁₀ of its mean square at the first layer over the last; trains to: about 6 ξ_c layers"
)
HEADINGS = {"gradient_range": "gradient", "chi_1": "χ₁", "xi_c": "ξ_c", "trainable_depth": "trains to"}


def print_forecast(title: str, forecast: NetworkForecast, every: bool = False) -> None:
    """Print the forecast of one network; `every`: with a row for every layer."""
    console = output_console(PIPE_WIDTH)
    console.print(Text(title, style="bold"), soft_wrap=True)
    if not forecast.frame.empty:
        count = len(layer_nodes(forecast.nodes))
        shown = pick_layers(count, every)
        console.print(predicted_layer_table(forecast, shown))
        if len(shown) < count:
            left_out = f"{count - len(shown)} layers between are left out; --all shows them"
            console.print(Text(left_out, style="dim"))
    if (facts := point_summary(forecast)) is not None:
        console.print(Text(facts), soft_wrap=True)
    console.print(Text(forecast.verdict, style="bold" if forecast.causes else "bold green"), soft_wrap=True)
    if forecast.causes:
        console.print(finding_grid(forecast.causes))
    if not forecast.frame.empty:
        console.print(Text(LEGEND, style="dim"))


def point_summary(forecast: NetworkForecast) -> str | None:
    """Return phase and depth scales in one line; None where the network is no plain chain.

    >>> point_summary(NetworkForecast(pd.DataFrame(), [], None, ""))
    """
    point = forecast.point
    if point is None:
        return None
    facts = {
        "phase": point.phase,
        "σ_w": f"{point.sigma_w:.4g}",
        "σ_b": f"{point.sigma_b:.4g}",
        "q*": f"{point.q_star:.4g}" + ("" if point.kind == "stable" else f" ({point.kind.replace('_', ' ')})"),
        "χ₁": f"{point.chi_1:.4f}",
        "c*": f"{point.c_star:.4g}",
        "ξ_c": f"{abs(point.xi_c):.4g}",
    }
    if point.kind != "half_stable":  # there the depth depends on where the signal starts: the verdict says how
        depth = abs(point.trainable_depth)
        facts["trainable depth"] = f"{depth:.0f}" if math.isfinite(depth) else "any"
    return " · ".join(f"{name} {value}" for name, value in facts.items())


def predicted_layer_table(forecast: NetworkForecast, shown: Sequence[int]) -> Table:
    """Return one row per layer shown, and a mark for those left out between."""
    table = new_layer_table(("σw²", "q", "c", "grad²", "sat", "dead"), layer_width=26, weight_width=16)
    groups = forecast.frame.groupby("index")
    stats = {index: dict(zip(rows["stat"], rows["value"], strict=True)) for index, rows in groups}
    layers = layer_nodes(forecast.nodes)
    for before, position in zip([-1, *shown], shown, strict=False):
        if position > before + 1:
            table.add_row("", Text("⋮", style="dim"), *[""] * 8)
        table.add_row(*_layer_cells(position + 1, layers[position], stats.get(position + 1, {})))
    return table


def pick_layers(count: int, every: bool = False) -> Sequence[int]:
    """Return the positions of the layers that a table shows: all of few, else both ends and about eight between.

    >>> pick_layers(3)
    [0, 1, 2]
    >>> len(pick_layers(100)), pick_layers(100)[:5], pick_layers(100)[-5:]
    (17, [0, 1, 2, 3, 13], [93, 96, 97, 98, 99])
    """
    if every or count <= MAX_LAYERS:
        return list(range(count))
    step = max(1, (count - 2 * END_LAYERS) // 9)
    between = range(END_LAYERS - 1 + step, count - END_LAYERS, step)
    return sorted({*range(END_LAYERS), *between, *range(count - END_LAYERS, count)})


def _layer_cells(index: int, layer: LayerNode, stats: dict[str, float]) -> list[Text]:
    sigma_w_squared = layer.variance * layer.fan_in
    texts = [
        str(index),
        layer.name,
        f"{layer.fan_in:g} → {layer.units}",
        layer.act.name if layer.act is not None else "",
        f"{sigma_w_squared:.4g}" if math.isfinite(sigma_w_squared) and layer.mean == 0 else "",
        format_number(stats.get("q"), digits=3),
        f"{stats['c']:.3f}" if "c" in stats else "",
        format_number(stats.get("grad_mean_square")),
        format_percent(stats.get("saturated_fraction")),
        format_percent(stats.get("dead_fraction")),
    ]
    return [Text(printable(text)) for text in texts]


def print_ranking(frame: pd.DataFrame, axes: Sequence[str], every: bool = False) -> None:
    """Print a ranked grid, best first; `every`: beyond the first rows, too."""
    console = output_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [*axes, "score", "contrast", "gradient_range", "phase", "chi_1", "xi_c", "trainable_depth"]
    for name in columns:
        words = (name in axes and name != "depth") or name == "phase"
        table.add_column(HEADINGS.get(name, name), justify="left" if words else "right")
    shown = frame if every else frame.head(MAX_RANKING_ROWS)
    for row in shown.to_dict("records"):
        table.add_row(*(Text(_ranking_entry(name, row[name])) for name in columns))
    console.print(table)
    if len(shown) < len(frame):
        console.print(Text(f"… {len(frame) - len(shown)} more (--all)", style="dim"))
    for reason, group in shown.dropna(subset=["reason"]).groupby("reason", sort=False):
        console.print(Text(f"{len(group)} without a score: {reason}", style="dim"))
    console.print(Text(RANKING_LEGEND, style="dim"))


def _ranking_entry(name: str, value: object) -> str:
    if value is None or value != value:
        return "–" if name == "score" else ""
    if not isinstance(value, float):
        return printable(value)
    if name in ("xi_c", "trainable_depth"):
        size = abs(value)
        return "any" if size > 1e4 else f"{size:.0f}" if name == "trainable_depth" else f"{size:.3g}"
    if name == "gradient_range":
        return f"{value:+.2f}"
    return f"{value:.3f}" if name in ("score", "contrast", "chi_1") and abs(value) < 1000 else f"{value:.4g}"
