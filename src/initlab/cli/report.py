"""`initlab report` and `initlab table`: what they print."""

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
from initlab.system.files import short_path
from initlab.system.numbers import format_rounded

MAX_TABLE_ROWS = 40  # lines of each part on the screen; the page has them all


def run_report(paths: Sequence[str], out: str | None) -> None:
    """Write the page, then print its table, its comparisons, the runs that cannot be read, and where the page is.

    Args:
        paths: directories of runs or sweeps.
        out: file of the page; None: report.html in the directory.

    Raises:
        UserError: a path does not exist, there is no run, or the page cannot be written.
    """
    from initlab.report import write_report

    report = write_report(paths, out)
    runs = report.data.study
    if len(runs.runs):
        if runs.rates:
            print("every cell at its best rate; where a race tuned it, on the seeds that did not choose it")
        table = build_table(best_rate_study(runs))
        print(table_to_text(table, most=MAX_TABLE_ROWS), end="")
        if len(table.lines) > MAX_TABLE_ROWS:
            print(f"… {len(table.lines) - MAX_TABLE_ROWS} more in the page")
    unread = [f"{row['name']}: {row['status']}: {row['reason']}" for row in runs.unread.to_dict("records")]
    for lines, rest in (
        (comparison_sentences(report.data), "more pairs in the page"),
        (unread, "more that are not whole, listed in the page"),
    ):
        for line in lines[:MAX_TABLE_ROWS]:
            print(printable(line))
        if len(lines) > MAX_TABLE_ROWS:
            print(f"… {len(lines) - MAX_TABLE_ROWS} {rest}")
    size = report.path.stat().st_size / 1e6
    print(f"report       {printable(short_path(report.path))} ({size:.1f} MB; opens in any browser, needs no network)")


def print_run_table(
    paths: Sequence[str],
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    across: str | None = None,
    form: str = "text",
    best: bool = False,
    best_rate: bool = False,
) -> None:
    """Print one table of runs; remarks about it go to stderr.

    Args:
        paths: directories of runs or sweeps.
        by: keys to group by; none: all that differ but the seed.
        metrics: columns; none: the test accuracy.
        across: key whose values become columns.
        form: text, csv, markdown or latex.
        best: mark the best entries.
        best_rate: take only runs at their cell's best rate.

    Raises:
        UserError: a path, a key, a metric or a format is unknown, or there is no run.
    """
    if form not in FORMATS:
        raise UserError(f"--format={form} is unknown; there are {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}")
    roots = [Path(path) for path in paths]
    study = build_study(load(roots), roots)
    if study.runs.empty:
        raise UserError(f"There is no run to tabulate in {', '.join(paths)}: give a run's or a sweep's directory.")
    remarks = []
    tuning = column_or_blanks(study.runs, "race") == "tuning"
    if tuning.any() and not tuning.all():
        # Their seeds chose the rates, so they are not compared.
        study = replace(study, runs=study.runs[~tuning].reset_index(drop=True))
        remarks.append(f"{tuning.sum()} runs that tuned the rates of a race are left out.")
    if best_rate:
        study = best_rate_study(study)
    table = build_table(study, _nonempty(by), _nonempty(metrics), across, best)
    print(FORMATS[form](table), end="")
    if best and not any(entry is not None and entry.best for line in table.lines for entry in line.entries):
        remarks.append(
            "nothing is marked: no entry is better than all its rivals beyond the spread over seeds, which needs "
            f"{MIN_SEEDS} common seeds."
        )
    if table.mixed:
        remarks.append(f"lines also mix {', '.join(table.mixed)}: their std is not over seeds alone; add it to --by.")
    for remark in remarks:
        print(f"initlab: {remark}", file=sys.stderr)


def comparison_sentences(report: ReportData) -> list[str]:
    """Return one sentence for each compared pair of schemes, decided ones first.

    One sentence before them counts the pairs with too few common seeds, one says what the intervals hold.
    """
    metric = (report.metric or "").replace("_", " ")
    factor, unit = (100, " points") if is_percentage(metric) else (1, "")
    sentences = []
    pairs, few = report.payload["pairs"], report.payload["few"]
    if few:
        seeds = f"{few[0]}" if few[0] == few[-1] else f"{few[0]} to {few[-1]}"
        sentences.append(
            f"{len(few)} {'pair' if len(few) == 1 else 'pairs'} of schemes cannot be compared: {seeds} common seeds, "
            f"and it takes {MIN_SEEDS}"
        )
    if len(pairs) == 1:
        sentences.append(f"differences in {metric}; at 95 % the interval holds the true one:")
    elif pairs:
        sentences.append(f"differences in {metric}; at 95 % all {len(pairs)} intervals hold the true ones at once:")
    for row in sorted(pairs, key=lambda row: VERDICTS.index(row["verdict"])):
        labels = [value_text(row["activation"]), f"depth {value_text(row['depth'])}", value_text(row["setting"])]
        where = ", ".join(filter(None, labels))
        gap, low, high = (
            format_rounded(factor * (row[key] or 0), 3, "g", "+") for key in ("difference", "low", "high")
        )
        numbers = f"{gap}{unit} [{low}, {high}], p {row['p'] or 0:.2g}, {row['n']} seeds"
        numbers += "" if row["seeds"] == "all seeds" else f", {row['seeds']}"
        if row["verdict"] == "better":
            sentences.append(f"{where}: {row['first']} is better than {row['second']}: {numbers}")
            continue
        size = format_rounded(factor * row["margin"], 2, "g")
        margin = f"{size}{unit if size != '1' else ' point'}" if unit else f"a loss of {size}"
        why = f"within ± {margin}" if "noise" in row["verdict"] else f"it may be 0, or more than {margin}"
        sentences.append(f"{where}: {row['first']} against {row['second']}: {row['verdict']}, {why}: {numbers}")
    return sentences


def best_rate_study(study: Study) -> Study:
    """Return a study of the runs at their cell's best rate."""
    return replace(study, runs=study.runs[study.runs["best_rate"]].reset_index(drop=True), rates=False)


def _nonempty(words: Sequence[str]) -> list[str]:
    return [word.strip() for word in words if word.strip()]
