"""What `initlab schemes` and `initlab activations` print: the registries as tables or JSON."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from initlab.system.escape import json_text, print


def print_schemes(as_json: bool) -> None:
    """List the initialization schemes: name, law, what they need, year, reference."""
    from initlab.initialize.procedures import PROCEDURES
    from initlab.schemes import SCHEMES

    rows = [
        {
            "name": s.name,
            "law": s.formula,
            "variance": layer_variance(s),
            "needs": ", ".join(s.needs),
            "keys": [f"init.{k}" for k in s.parameters],
            "aliases": aliases_of("init", s.name),
            "year": s.year,
            "reference": s.reference,
        }
        for s in SCHEMES.values()
    ]
    rows += [
        {
            "name": p.name,
            "law": p.formula,
            "variance": None,
            "needs": ", ".join(p.needs),
            "keys": [f"init.{k}" for k in p.parameters],
            "aliases": aliases_of("init", p.name),
            "year": p.year,
            "reference": p.reference,
        }
        for p in PROCEDURES.values()
    ]
    print_records(rows, as_json, hide=("keys", "aliases"))
    if not as_json:
        print(
            f"\nvariance: fan_in · Var[W] of a hidden {EXAMPLE_WIDTH} → {EXAMPLE_WIDTH} layer under ReLU; needs: W the weight alone,"
        )
        print("else what a scheme looks at (structure, data, loss) or brings with it (architecture, rates).")
        print(
            "--json adds each scheme's own keys, its aliases (xavier_*, kaiming_*, torch's names) and full references."
        )


EXAMPLE_WIDTH = 128  # units of the layer whose variance is shown
MIN_REFERENCE_WIDTH = 100  # columns of a terminal below which a table goes without references


def aliases_of(group: str, name: str) -> list[str]:
    """List the other names that a scheme or an activation is known by."""
    from initlab.config.aliases import ALIASES

    return [alias for alias, canonical in ALIASES[group].items() if canonical == name]


def layer_variance(scheme: Any) -> float | None:
    """Return σ_w² = fan_in · Var[W] that a scheme promises in a square hidden layer, under ReLU where that matters."""
    from initlab.activations import ACTIVATIONS
    from initlab.initialize.from_theory import bind_critical_point
    from initlab.inspection import Fans

    scheme = bind_critical_point(scheme, ACTIVATIONS["relu"], None)
    if scheme.derived == "moments" or scheme.block_refusal("dense", (EXAMPLE_WIDTH, EXAMPLE_WIDTH)) is not None:
        return None
    fans = Fans(EXAMPLE_WIDTH, EXAMPLE_WIDTH)
    variance = scheme.law(fans, scheme.gain(ACTIVATIONS["relu"], fans)).variance
    return round(EXAMPLE_WIDTH * variance, 4) if math.isfinite(variance) else None


def print_activations(as_json: bool) -> None:
    """List the activation functions: name, formula, saturation interval, kinks, reference."""
    from initlab.activations import ACTIVATIONS

    print_records(
        [
            {
                "name": a.name,
                "formula": a.formula,
                "keys": [f"act.{k}" for k in a.parameters],
                "aliases": aliases_of("act", a.name),
                "saturated outside": None if a.saturation is None else [round(x, 4) for x in a.saturation],
                "kinks": list(a.kinks),
                "reference": a.reference,
            }
            for a in ACTIVATIONS.values()
        ],
        as_json,
        hide=("keys", "aliases"),
    )
    if not as_json:
        print("\n--json adds each activation's own keys, its aliases and full references.")


def print_records(rows: Sequence[Mapping[str, Any]], as_json: bool, hide: Sequence[str] = ()) -> None:
    """Print records as a table that fits the terminal, or whole as JSON."""
    if as_json:
        print(json_text(name_infinities(rows)))
        return
    from rich.table import Table
    from rich.text import Text

    from initlab.system.terminal import FILE_WIDTH, SafeConsole

    console = SafeConsole()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = SafeConsole(width=FILE_WIDTH)

    table = Table(box=None, pad_edge=False, header_style="bold")
    # On a narrow terminal the formulas need the room; whole references are in the JSON anyway.
    hide = (*hide, "reference") if console.width < MIN_REFERENCE_WIDTH else hide
    columns = [column for column in rows[0] if column not in hide]
    for column in columns:
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        table.add_row(*(Text(catalogue_entry(row[column], column)) for column in columns))
    console.print(table)


def catalogue_entry(value: Any, column: str = "") -> str:
    """Write one value of a table; the whole reference is in the JSON."""
    if value is None or value == []:
        return ""
    if column == "reference":
        return short_reference(str(value))
    if isinstance(value, list):
        return ", ".join(x if isinstance(x, str) else f"{x:g}" for x in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_reference(text: str) -> str:
    """Cut a reference after its year, and its authors after the first of three.

    >>> short_reference("He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers"), short_reference("rule of thumb")
    ('He et al. 2015', 'rule of thumb')
    """
    found = re.match(r"(.*?)\s*\b((?:1[89]|20)\d\d)\b", text)
    if found is None:
        return text
    authors, year = found.groups()
    return f"{authors.split(',')[0]} et al. {year}" if "," in authors else f"{authors} {year}"


def name_infinities(value: Any) -> Any:
    """Replace infinities, which JSON has not, by their names."""
    if isinstance(value, Mapping):
        return {k: name_infinities(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [name_infinities(v) for v in value]
    return str(value) if isinstance(value, float) and abs(value) == float("inf") else value
