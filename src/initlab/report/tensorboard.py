"""A sweep's own run in TensorBoard: heat maps as images, the table as text, results over depth as charts."""

import re
from pathlib import Path

import pandas as pd

from initlab.records import EventFile, load
from initlab.records.repair import EVENT_FILE_NAME
from initlab.report.formats import is_number, table_to_markdown
from initlab.report.heatmaps import draw_heat_map, draw_outcome_map, mean_table
from initlab.report.pairs import comparison_metric
from initlab.report.study import SWEEP_RUN, Study, build_study, sorted_values
from initlab.report.table import build_table
from initlab.system.files import os_errors_as_user_errors, refuse_link


def write_sweep_run(directory: str | Path, frame: pd.DataFrame | None = None) -> Path | None:
    """Write `<directory>/sweep/`, a run that TensorBoard shows beside those of the sweep, and return its directory.

    For every activation (and setting) it has a depth × scheme heat map of the compared metric and one of outcomes
    (Images), the table of `initlab table` (Text), and charts of the metric over depth, one line per scheme (Custom
    Scalars, whose axis counts depths). It replaces the result of an earlier call.

    Args:
        directory: of the sweep.
        frame: its runs, if `load` has read them already.

    Returns:
        The directory of the run, or None for less than two runs, for which nothing is written.

    Raises:
        UserError: the directory does not exist, or cannot be written.
    """
    root = Path(directory)
    found = build_study(load(root) if frame is None else frame)
    if len(found.runs) < 2:
        return None
    place = root / SWEEP_RUN
    refuse_link(place)
    with os_errors_as_user_errors(place):
        place.mkdir(exist_ok=True)
        (place / EVENT_FILE_NAME).unlink(missing_ok=True)
    events = EventFile(place / EVENT_FILE_NAME)
    add_sweep_events(events, found)
    events.flush()
    return place


def add_sweep_events(events: EventFile, found: Study) -> None:
    """Add images, text and charts to the events of a sweep's run."""
    at_best = found.runs[found.runs["best_rate"]]
    metric = comparison_metric(at_best)
    charts: dict[str, list[str]] = {}
    for (act, setting), group in at_best.groupby(["activation", "setting"], sort=True):
        title = ", ".join(part for part in (str(act), str(setting)) if part)
        tag = tag_part(title)
        events.add_image(f"outcomes/{tag}", draw_outcome_map(group, title))
        if metric:
            events.add_image(f"{metric}/{tag}", draw_heat_map(group, metric, title))
            add_depth_scalars(events, group, metric, tag)
            charts[title] = [f"{re.escape(f'over_depth/{tag}/')}.*"]
    table = table_to_markdown(build_table(found, best=True))
    note = (
        "Mean ± standard deviation over seeds; bold entries are better than all that differ from them in the first "
        "column only, beyond seed noise.\n\n"
    )
    events.add_text("all_runs", note + table)
    if charts and metric:
        events.set_layout({f"{metric.replace('_', ' ')} over depth (the axis counts layers)": charts}, opened=0)


def add_depth_scalars(events: EventFile, group: pd.DataFrame, metric: str, tag: str) -> None:
    """Add the metric of every scheme as a scalar whose steps are depths; a depth that is no number is left out."""
    for depth, (_, means) in zip(sorted_values(group["depth"]), mean_table(group, metric).iterrows(), strict=True):
        if is_number(depth):
            values = {f"over_depth/{tag}/{tag_part(str(scheme))}": mean for scheme, mean in means.dropna().items()}
            events.add_scalars(int(depth), values)


def tag_part(words: str) -> str:
    """Return a name that TensorBoard accepts as one part of a tag.

    >>> tag_part("normal, std=0.1"), tag_part("</b> é")
    ('normal,_std=0.1', '_b_é')
    """
    return re.sub(r"[^\w.,=+-]+", "_", words) or "_"
