"""`initlab schemes` and `initlab activations`: the registries as tables or JSON."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from initlab.cli.output import output_console, output_json
from initlab.config.aliases import ALIASES
from initlab.system.escape import print

EXAMPLE_WIDTH = 128  # units of the layer whose variance is shown
MIN_REFERENCE_WIDTH = 100  # columns of a terminal below which a table has no references


def print_schemes(as_json: bool) -> None:
    """Print the initialization schemes: name, law, variance, what they need, year, reference."""
    from initlab.initialize.procedures import PROCEDURES
    from initlab.schemes import SCHEMES

    records: list[Any] = [*SCHEMES.values(), *PROCEDURES.values()]
    rows = [
        {
            "name": record.name,
            "law": record.formula,
            "variance": layer_variance(record) if record.name in SCHEMES else None,
            "needs": ", ".join(record.needs),
            **_keys_and_aliases("init", record),
            "year": record.year,
            "reference": record.reference,
        }
        for record in records
    ]
    print_records(rows, as_json)
    if not as_json:
        layer = f"{EXAMPLE_WIDTH} → {EXAMPLE_WIDTH}"
        print(f"\nvariance: fan_in · Var[W] of a hidden {layer} layer under ReLU; needs: W the weight alone,")
        print("else what a scheme reads (structure, data, loss) or sets besides weights (architecture, rates).")
        print("--json adds each scheme's keys, its aliases (xavier_*, kaiming_*, torch's names) and full references.")


def print_activations(as_json: bool) -> None:
    """Print the activation functions: name, formula, saturation interval, kinks, reference."""
    from initlab.activations import ACTIVATIONS

    rows = [
        {
            "name": record.name,
            "formula": record.formula,
            **_keys_and_aliases("act", record),
            "saturated outside": None if record.saturation is None else [round(x, 4) for x in record.saturation],
            "kinks": list(record.kinks),
            "reference": record.reference,
        }
        for record in ACTIVATIONS.values()
    ]
    print_records(rows, as_json)
    if not as_json:
        print("\n--json adds each activation's keys, its aliases and full references.")


def _keys_and_aliases(group: str, record: Any) -> dict[str, list[str]]:
    aliases = [alias for alias, canonical in ALIASES[group].items() if canonical == record.name]
    return {"keys": [f"{group}.{key}" for key in record.parameters], "aliases": aliases}


def layer_variance(scheme: Any) -> float | None:
    """Return σ_w² = fan_in · Var[W] that a scheme promises in a square hidden layer under ReLU.

    None where it has no such law: it depends on data, or the weight is a fixed pattern.
    """
    from initlab.activations import ACTIVATIONS
    from initlab.initialize.from_theory import bind_critical_point
    from initlab.inspection import Fans

    scheme = bind_critical_point(scheme, ACTIVATIONS["relu"], None)
    if scheme.derived == "moments" or scheme.block_refusal("dense", (EXAMPLE_WIDTH, EXAMPLE_WIDTH)) is not None:
        return None
    fans = Fans(EXAMPLE_WIDTH, EXAMPLE_WIDTH)
    variance = scheme.law(fans, scheme.gain(ACTIVATIONS["relu"], fans)).variance
    return round(EXAMPLE_WIDTH * variance, 4) if math.isfinite(variance) else None


def print_records(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print records as a table that fits the terminal, without their keys and aliases, or whole as JSON."""
    if as_json:
        print(output_json(rows))
        return
    from rich.table import Table
    from rich.text import Text

    console = output_console()
    hidden = {"keys", "aliases"} | ({"reference"} if console.width < MIN_REFERENCE_WIDTH else set())
    columns = [column for column in rows[0] if column not in hidden]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        table.add_row(*(Text(catalogue_entry(row[column], column)) for column in columns))
    console.print(table)


def catalogue_entry(value: Any, column: str = "") -> str:
    """Return one value of a table as text, references cut short."""
    if value is None or value == []:
        return ""
    if column == "reference":
        return short_reference(str(value))
    if isinstance(value, list):
        return ", ".join(map(catalogue_entry, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_reference(text: str) -> str:
    """Return a reference up to its year, with the first of several authors.

    >>> short_reference("He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers"), short_reference("rule of thumb")
    ('He et al. 2015', 'rule of thumb')
    """
    match = re.match(r"(.*?)\s*\b((?:1[89]|20)\d\d)\b", text)
    if match is None:
        return text
    authors, year = match.groups()
    return f"{authors.split(',')[0]} et al. {year}" if "," in authors else f"{authors} {year}"
