"""One page per experiment for people who read: question, set-up, figure, verdict, how to vary it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from initlab.config.option_files import conf_dir
from initlab.reproduce.judge import decide, headline, weakest_verdict
from initlab.reproduce.specification import Criterion, Experiment, experiment_names, load_experiment
from initlab.system.files import write_atomically
from initlab.system.safe_reading import read_bytes, read_json
from initlab.system.terminal import format_duration

TABLE_FILE = "README.md"


def write_pages(verdicts: Path, pages: Path, costs_file: Path | None = None) -> list[Path]:
    """Write the page of every experiment, and their table, from their files and the verdicts last measured.

    All are judged by the present rule, from the numbers that were measured.

    Args:
        verdicts: a directory that `initlab reproduce` wrote; verdict and figure of each experiment are copied beside
            its page, where the older ones stay if there is none.
        pages: where the pages go.
        costs_file: where the seconds go that `initlab reproduce` lists.
    """
    pages.mkdir(parents=True, exist_ok=True)
    costs: dict[str, float] = {}
    written = [pages / f"{name}.md" for name in experiment_names()] + [pages / TABLE_FILE]
    for name in experiment_names():
        directory = verdicts / f"{name}-quick"
        for source, target in (("verdict.json", f"{name}.json"), ("figure.svg", f"{name}.svg")):
            if (directory / source).is_file():
                write_atomically(pages / target, read_bytes(directory / source))
        if (record := read_verdict(pages, name)) is not None:
            record = judge_record(record)
            write_atomically(pages / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
            costs[name] = record["seconds"]
        write_atomically(pages / f"{name}.md", experiment_page(load_experiment(name), record).encode())
    if costs_file is not None:
        write_atomically(costs_file, (json.dumps(costs, indent=1) + "\n").encode())
    text = f"# What the literature claims, and what is found here\n\n{summary_table(pages)}\n"
    write_atomically(pages / TABLE_FILE, text.encode())
    return written


def judge_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the verdicts that the present rule gives to its numbers."""

    def judge_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        judged = []
        for row in rows:
            bounds = Criterion(row["says"], "", {}, row.get("above"), row.get("below"), "")
            known = bounds.above is not None or bounds.below is not None
            halves = [float(value) for value in row["halves"]]
            judged.append({**row, "verdict": decide(bounds, halves) if known else row["verdict"]})
        return judged, weakest_verdict([row["verdict"] for row in judged])

    criteria, untuned = judge_rows(record["criteria"])
    tuned_criteria, tuned = (None, None) if record["tuned_criteria"] is None else judge_rows(record["tuned_criteria"])
    judged = {"criteria": criteria, "tuned_criteria": tuned_criteria, "untuned": untuned, "tuned": tuned}
    return {**record, **judged, "verdict": headline(untuned, tuned)}


def read_verdict(pages: Path, name: str) -> dict[str, Any] | None:
    """Return the verdict last copied beside a page, or None."""
    path = pages / f"{name}.json"
    return read_json(path) if path.is_file() else None


def experiment_page(about: Experiment, record: Mapping[str, Any] | None) -> str:
    """Write one experiment's page as Markdown; `record` is its verdict as last measured."""
    parts = [f"# {about.name}", f"**{about.question}**", f"Source: {about.paper}.", f"Claim: {about.claim}"]
    if about.printed:
        parts.append(f"What the paper printed: {about.printed}")
    parts += ["## Set-up", f"`conf/experiment/{about.name}.yaml`:", f"```yaml\n{grid_yaml(about.name)}\n```"]
    if about.quick:
        changed = " ".join(f"{key}={json.dumps(value)}" for key, value in about.quick.items()).replace('"', "")
        parts.append(f"`--quick` runs it with `{changed}`.")
    if about.tune:
        rates = ", ".join(f"{rate:g}" for rate in about.tune)
        parts.append(
            f"The claim compares networks that train, so each cell is also run at its own best rate of {rates}."
        )
    parts += ["## Criteria, fixed before the run", criteria_table(about), "## Verdict"]
    parts += ["Not yet measured here."] if record is None else verdict_section(about, record)
    if about.remarks:
        parts.append(about.remarks.strip())
    commands = f"    initlab reproduce {about.name}\n    python train.py experiment={about.name}"
    parts += ["## Run it, and vary it", commands, about.vary.strip() and f"To vary it: `{about.vary.strip()}`"]
    return "\n\n".join(part for part in parts if part) + "\n"


def grid_yaml(name: str) -> str:
    """Return the part of an experiment's file that Hydra runs."""
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.partition("\nverdict:")[0].strip()


def criteria_table(about: Experiment) -> str:
    """Write the criteria, their bounds and the reasons for these."""
    rows = [f"| {c.says} | {bound_text(c.above, c.below)} | {c.why} |" for c in about.criteria]
    return "\n".join(["| the claim holds when | bound | because |", "|---|---|---|", *rows])


def bound_text(above: float | None, below: float | None) -> str:
    """Write where a number must lie.

    >>> bound_text(None, 1.5), bound_text(0, 1)
    ('below 1.5', 'between 0 and 1')
    """
    if above is not None and below is not None:
        return f"between {above:g} and {below:g}"
    return f"above {above:g}" if below is None else f"below {below:g}"


def verdict_section(about: Experiment, record: Mapping[str, Any]) -> list[str]:
    """Write what was measured, as paragraphs of Markdown."""
    when = f"{record['date']}, {record['mode']}, {len(record['seeds'])} fresh seeds per cell, {record['runs']} networks"
    parts = [f"**{record['verdict']}** ({when}, took {format_duration(record['seconds'])})"]
    if record["tuned"]:
        parts.append(f"At the rate of the file: {record['untuned']}. At each cell's own rate: {record['tuned']}.")
    parts.append(f"![{about.question}]({about.name}.svg)")
    lines = ["| criterion | measured | by halves of the seeds | |", "|---|---|---|---|"]
    for mark, rows in (("", record["criteria"]), ("at tuned rates: ", record["tuned_criteria"] or [])):
        for row in rows:
            halves = row.get("problem") or " / ".join(number_text(value) for value in row["halves"])
            lines.append(f"| {mark}{row['says']} | {number_text(row['value'])} | {halves} | {row['verdict']} |")
    return [*parts, "\n".join(lines)]


def number_text(value: Any) -> str:
    """Write a measured number, which JSON holds as text where it is not finite.

    >>> number_text(0.12345), number_text("inf")
    ('0.123', 'inf')
    """
    return f"{float(value):.3g}"


def summary_table(pages: Path, links: str = "") -> str:
    """Write the table of all experiments as last measured.

    Args:
        pages: the directory of the pages.
        links: the path from the text to the pages.
    """
    records = [record for name in experiment_names() if (record := read_verdict(pages, name))]
    lines = [
        "| experiment | claim | verdict | at its file's rate | at tuned rates | seeds | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        cells = [f"[{r['name']}]({links}{r['name']}.md)", r["claim"].strip(), f"**{r['verdict']}**", r["untuned"]]
        cells += [r["tuned"] or "", f"{r['seeds'][0]} to {r['seeds'][-1]}", format_duration(r["seconds"])]
        lines.append("| " + " | ".join(cells) + " |")
    dates, modes = (", ".join(sorted({r[key] for r in records})) for key in ("date", "mode"))
    when = (
        f"{len(records)} of {len(experiment_names())} experiments, measured on two cores by `initlab reproduce` "
        f"({modes}) on {dates}, {format_duration(sum(r['seconds'] for r in records))} in all."
    )
    return "\n\n".join([when, "\n".join(lines)])
