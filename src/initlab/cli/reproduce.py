"""`initlab reproduce`: the list of experiments, one of them, or the whole table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from initlab.cli.output import output_console
from initlab.errors import UserError
from initlab.records.row_checks import read_number
from initlab.reproduce.specification import Experiment, experiment_names, load_experiment
from initlab.system.escape import json_text, print
from initlab.system.safe_reading import abbreviate, error_reason, read_json
from initlab.system.terminal import SafeConsole, format_duration

COSTS = Path(__file__).parents[1] / "reproduce" / "costs.json"
"""Seconds that each experiment took when its verdict in the documentation was measured, on two cores."""
VERDICT_STYLES = {
    "holds": "green",
    "does not hold": "red",
    "undecided": "yellow",
    "holds only at the untuned rate": "yellow",
}


def run_reproduce(chosen: Sequence[str], mode: str, root: str, as_json: bool = False) -> None:
    """Run and judge experiments, one after another, or list all of them.

    Args:
        chosen: their names, or `all`; none: print the list.
        mode: `quick` or `full`.
        root: directory of runs, reports and verdicts.
        as_json: print JSON.

    Raises:
        UserError: an experiment does not exist.
    """
    if not chosen:
        print_experiments(Path(root), as_json)
        return
    from initlab.reproduce.run import keep_workers, reproduce

    names = experiment_names() if list(chosen) == ["all"] else list(chosen)
    if "all" in names:
        raise UserError("`all` stands for every experiment: give it alone, or names.")
    experiments = [load_experiment(name) for name in names]  # a wrong name is refused before anything runs
    console = SafeConsole(stderr=True)
    records = []
    with keep_workers():
        for number, experiment in enumerate(experiments, start=1):
            line = f"{experiment.name} ({number} of {len(experiments)}): {experiment.question}"
            console.print(line, highlight=False, markup=False)
            verdict = reproduce(experiment.name, mode, root)
            records.append(verdict.record)
            if not as_json:
                print_verdict(records[-1], verdict.directory)
    if as_json:
        print(json_text(records, indent=1, default=str))
    elif len(records) > 1:
        print_verdicts(records)


def print_verdict(record: dict[str, Any], directory: Path) -> None:
    """Print one verdict with its criteria, and where its report is."""
    console = output_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("criterion", "bound", "measured", "by halves", ""):
        table.add_column(column, overflow="fold")
    for heading, rows in (("", record["criteria"]), ("at tuned rates: ", record["tuned_criteria"] or [])):
        for row in rows:
            mark = Text(row["verdict"], VERDICT_STYLES[row["verdict"]])
            table.add_row(
                heading + row["says"], criterion_bound(row), measured_text(row["value"]), halves_text(row), mark
            )
    console.print(table)
    console.print(Text.assemble((record["claim"], ""), " → ", (record["verdict"], VERDICT_STYLES[record["verdict"]])))
    console.print(
        Text(f"{len(record['seeds'])} seeds, {record['runs']} networks, {format_duration(record['seconds'])}")
    )
    console.print(Text(f"{directory / 'report.html'}\n{directory / 'verdict.json'}\n"))


def criterion_bound(row: dict[str, Any]) -> str:
    """Return a criterion's bound as text.

    >>> criterion_bound({"above": None, "below": 1.5}), criterion_bound({"above": 1, "below": 2})
    ('< 1.5', '1 to 2')
    """
    if row["above"] is not None and row["below"] is not None:
        return f"{row['above']:g} to {row['below']:g}"
    return f"> {row['above']:g}" if row["below"] is None else f"< {row['below']:g}"


def measured_text(value: Any) -> str:
    """Return a measured number as text; a dash where it could not be measured.

    >>> measured_text(0.12345), measured_text(float("nan"))
    ('0.1235', '–')
    """
    return "–" if value != value else f"{float(value):.4g}"


def halves_text(row: dict[str, Any]) -> str:
    """Return what each half of the seeds gave, or why it gave nothing."""
    return row.get("problem") or " / ".join(measured_text(value) for value in row["halves"])


def print_verdicts(records: Sequence[dict[str, Any]]) -> None:
    """Print claim and verdict of several experiments."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "claim", "untuned", "tuned", "verdict", "took"):
        table.add_column(column, no_wrap=column == "experiment", overflow="fold")
    for r in records:
        verdict = Text(r["verdict"], VERDICT_STYLES[r["verdict"]])
        table.add_row(r["name"], r["claim"], r["untuned"], r["tuned"] or "", verdict, format_duration(r["seconds"]))
    output_console().print(table)


def print_experiments(root: Path, as_json: bool) -> None:
    """Print every experiment with its paper, its claim, its cost and its last verdict."""
    rows = [experiment_row(load_experiment(name), root) for name in experiment_names()]
    if as_json:
        print(json_text(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "paper", "claim", "cost", "last verdict"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        last = Text(row["verdict"], VERDICT_STYLES.get(row["verdict"], "red"))
        table.add_row(row["name"], row["paper"], row["claim"], row["cost"], last)
    output_console().print(table)
    print("\n`initlab reproduce NAME` runs one and judges it; `initlab reproduce all --quick` the whole table.")


def experiment_row(experiment: Experiment, root: Path) -> dict[str, str]:
    """Return one row of the list; the cost is that of the last run here or, before that, the one on two cores."""
    row = {"name": experiment.name, "paper": experiment.paper, "claim": experiment.claim, "verdict": ""}
    path = root / f"{experiment.name}-quick" / "verdict.json"
    if path.exists() or path.is_symlink():
        try:
            record = read_json(path)
            cost = f"{format_duration(read_number(record, 'seconds') or 0.0)} here"
            if record.get("verdict") in VERDICT_STYLES:
                return row | {"cost": cost, "verdict": record["verdict"]}
            reason = f"there is no verdict {abbreviate(record.get('verdict'))}"
        except (OSError, ValueError, OverflowError) as error:
            reason = error_reason(error)
        row["verdict"] = f"verdict.json cannot be read ({reason})"
    seconds = read_json(COSTS).get(experiment.name)
    return row | {"cost": "not yet measured" if seconds is None else f"{format_duration(seconds)} on two cores"}
