"""What `initlab report` and `initlab table` print."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from initlab.errors import UserError, did_you_mean
from initlab.records import load
from initlab.report.formats import FORMATS, table_to_text
from initlab.report.payload import ReportData
from initlab.report.study import Study, build_study, column_or_blanks, value_text
from initlab.report.table import build_table, is_percentage
from initlab.statistics.comparisons import MIN_SEEDS, VERDICTS
from initlab.system.escape import print, printable
from initlab.system.numbers import format_rounded

MAX_TABLE_ROWS = 40  # lines of a table on the screen; the page has them all


def run_report(paths: Sequence[str], out: str | None) -> None:
    """Write the page, then print the table it rests on, what is not whole, and where the page is.

    Raises:
        UserError: a path does not exist, there is no run, or the page cannot be written.
    """
    from initlab.report import write_report

    found = write_report(paths, out)
    runs = found.data.study
    if len(runs.runs):
        if runs.rates:
            print("every cell at its best rate, on the seeds that had no part in choosing it where there are such")
        lines = build_table(best_rate_study(runs))
        print(table_to_text(lines, most=MAX_TABLE_ROWS), end="")
        if len(lines.lines) > MAX_TABLE_ROWS:
            print(f"… {len(lines.lines) - MAX_TABLE_ROWS} more in the page")
    said = comparison_sentences(found.data)
    for line in said[:MAX_TABLE_ROWS]:
        print(printable(line))
    if len(said) > MAX_TABLE_ROWS:
        print(f"… {len(said) - MAX_TABLE_ROWS} more pairs in the page")
    for row in runs.unread.head(MAX_TABLE_ROWS).to_dict("records"):
        print(printable(f"{row['name']}: {row['status']}: {row['reason']}"))
    if len(runs.unread) > MAX_TABLE_ROWS:
        print(f"… {len(runs.unread) - MAX_TABLE_ROWS} more that are not whole, listed in the page")
    size = found.path.stat().st_size / 1e6
    print(f"report       {printable(shorter_path(found.path))} ({size:.1f} MB; opens in any browser, needs no network)")


def print_run_table(
    paths: Sequence[str],
    by: Sequence[str],
    metrics: Sequence[str],
    across: str | None,
    form: str,
    best: bool,
    best_rate: bool,
) -> None:
    """Print one table; what is mixed in it goes to stderr.

    Raises:
        UserError: a path, a key, a metric or a format is unknown, or there is no run.
    """
    if form not in FORMATS:
        raise UserError(f"--format={form} is unknown; there are {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}")
    roots = [Path(path) for path in paths]
    found = build_study(load(roots), roots)
    if found.runs.empty:
        raise UserError(f"There is no run to tabulate in {', '.join(paths)}: give a run's or a sweep's directory.")
    tuning = column_or_blanks(found.runs, "race") == "tuning"
    if tuning.any() and not tuning.all():
        # Their seeds chose the rates: what they reach is no part of the comparison.
        found = replace(found, runs=found.runs[~tuning].reset_index(drop=True))
        print(f"initlab: {tuning.sum()} runs that tuned the rates of a race are left out.", file=sys.stderr)
    if best_rate:
        found = best_rate_study(found)
    table = build_table(found, nonempty_words(by), nonempty_words(metrics), across, best)
    print(FORMATS[form](table), end="")
    if best and not any(found is not None and found.best for line in table.lines for found in line.entries):
        print(
            "initlab: nothing is marked: no entry is better than all its rivals beyond what seeds do, which it takes "
            f"{MIN_SEEDS} common seeds to tell.",
            file=sys.stderr,
        )
    if table.mixed:
        print(
            f"initlab: lines also mix {', '.join(table.mixed)}: their std is not over seeds alone; add it to --by.",
            file=sys.stderr,
        )


def comparison_sentences(found: ReportData) -> list[str]:
    """Return a sentence for every pair of schemes that was compared, decided ones first; one for all with few seeds."""
    metric = (found.metric or "").replace("_", " ")
    factor, unit = (100, " points") if is_percentage(metric) else (1, "")
    said = []
    pairs, few = found.payload["pairs"], found.payload["few"]
    if few:
        seeds = f"{few[0]}" if few[0] == few[-1] else f"{few[0]} to {few[-1]}"
        said.append(
            f"{len(few)} {'pair' if len(few) == 1 else 'pairs'} of schemes cannot be compared: {seeds} common seeds, "
            f"and it takes {MIN_SEEDS}"
        )
    if pairs:
        hold = (
            "the interval holds the true one" if len(pairs) == 1 else f"all {len(pairs)} intervals hold the true ones"
        )
        said.append(f"differences in {metric}; at 95 % {hold}{' at once' if len(pairs) > 1 else ''}:")
    for row in sorted(pairs, key=lambda row: VERDICTS.index(row["verdict"])):
        place = [value_text(row["activation"]), f"depth {value_text(row['depth'])}", value_text(row["setting"])]
        where = ", ".join(part for part in place if part)
        first, second = row["first"], row["second"]
        gap, low, high = (
            format_rounded(factor * (row[key] or 0), 3, "g", "+") for key in ("difference", "low", "high")
        )
        told = f"{gap}{unit} [{low}, {high}], p {row['p'] or 0:.2g}, {row['n']} seeds"
        told += "" if row["seeds"] == "all seeds" else f", {row['seeds']}"
        if row["verdict"] == "better":
            said.append(f"{where}: {first} is better than {second}: {told}")
            continue
        size = format_rounded(factor * row["margin"], 2, "g")
        matters = f"{size}{unit if size != '1' else ' point'}" if unit else f"a loss of {size}"
        why = f"within ± {matters}" if "noise" in row["verdict"] else f"it may be 0, or more than {matters}"
        said.append(f"{where}: {first} against {second}: {row['verdict']}, {why}: {told}")
    return said


def best_rate_study(found: Study) -> Study:
    """Return a study of the runs at their cell's best rate."""
    return replace(found, runs=found.runs[found.runs["best_rate"]].reset_index(drop=True), rates=False)


def nonempty_words(words: Sequence[str]) -> list[str]:
    """Leave out what is empty."""
    return [word.strip() for word in words if word.strip()]


def shorter_path(path: Path) -> str:
    """Return a path from here where that is shorter."""
    try:
        return min(str(path), os.path.relpath(path), key=len)
    except OSError:  # the current directory has been removed
        return str(path)
