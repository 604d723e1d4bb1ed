"""The map of phases: every point (σ_w, σ_b) of a plane, written as a page and a CSV."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from initlab.activations import Activation
from initlab.cli.output import output_json, write_csv
from initlab.cli.predict_grid import compose_forecasts, forecast_config
from initlab.config import Config
from initlab.errors import UserError
from initlab.experiment.build import build_activation
from initlab.system.escape import print
from initlab.system.imports import option_name
from initlab.theory import PhaseDiagram, critical, critical_line, phase_diagram
from initlab.theory.fixed_points import TRAINABLE_SCALES

SIGMA_W, SIGMA_B, POINTS = "0.5..4", "0..1", 200
OUTPUT_DIRECTORY = Path("outputs")  # where a page goes unless --out names another place
MAX_POINTS = 2000  # along an axis


def draw_phase_map(
    overrides: Sequence[str],
    sigma_w: str | None,
    sigma_b: str | None,
    points: int | None,
    out: str | None,
    csv: str | None,
    as_json: bool,
) -> None:
    """Solve the plane, write the page and its CSV, and print where they are.

    Args:
        overrides: as for `train`; schemes that `init=` names are marked where their hidden layers lie.
        sigma_w: range, `LOW..HIGH`; None: 0.5..4.
        sigma_b: range, `LOW..HIGH`; None: 0..1.
        points: how many along each axis; None: 200.
        out: file or directory of the page; None: in `outputs`.
        csv: file of the points; None: beside the page.
        as_json: print the numbers, and write no page.

    Raises:
        UserError: several activations or none, a range that cannot be, or a file that cannot be written.
    """
    count = POINTS if points is None else points
    if not 2 <= count <= MAX_POINTS:
        raise UserError(f"--points {count} must lie between 2 and {MAX_POINTS}: the number of points along each axis.")
    across = parse_range("--sigma-w", sigma_w or SIGMA_W, count)
    along = parse_range("--sigma-b", sigma_b or SIGMA_B, count)
    configs = compose_forecasts(overrides)
    if len({str(config.act) for config in configs}) > 1:
        names = ", ".join(dict.fromkeys(option_name(config.act) for config in configs))
        raise UserError(f"a map is of one activation, not of {names}: choose one by act=.")
    act = build_activation(configs[0])
    if act is None:
        raise UserError(f"model={configs[0].model['name']} has no act= to map: leave model out.")
    diagram = phase_diagram(act, across, along)
    line = critical_line(act, along)
    frame = phase_frame(diagram, line)
    if as_json:
        write_csv(frame, csv)
        print(output_json({"act": act.name, "critical_line": line, "points": frame.to_dict("records")}))
        return
    names_schemes = any(override.lstrip("+").startswith("init=") for override in overrides)
    marks = [mark for config in configs if (mark := scheme_mark(config)) is not None] if names_schemes else []
    name = f"phases-{re.sub(r'[^A-Za-z0-9_.-]', '_', act.name)}.html"
    if out is None:
        OUTPUT_DIRECTORY.mkdir(exist_ok=True)
    page = Path(out) if out is not None else OUTPUT_DIRECTORY / name
    page = page / name if page.is_dir() else page
    from initlab.report import write_phases

    write_phases(page, map_title(act), diagram, line, marks, critical_line_repels(act, along[np.isfinite(line)]))
    table = Path(csv) if csv is not None else page.with_suffix(".csv")
    write_csv(frame, str(table))
    print(phase_summary(frame, line, along))
    print(f"map          {page} ({page.stat().st_size / 1e6:.1f} MB; opens in any browser, needs no network)")
    print(f"points       {table}")


def parse_range(option: str, text: str, count: int) -> np.ndarray:
    """Return `count` evenly spaced numbers between the ends of a range such as `0.5..4`.

    Raises:
        UserError: it is not a range of standard deviations; the error names the option.

    >>> parse_range("--sigma-w", "0.5..4", 3).tolist()
    [0.5, 2.25, 4.0]
    """
    try:
        low, high = map(float, text.split(".."))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{option} {text} is not a range: write two numbers such as {option} 0.5..4.")
    if low < 0:
        raise UserError(f"{option} {text} goes below 0, but σ is a standard deviation: write {option} 0..1.")
    if low >= high:
        raise UserError(f"{option} {text} must go up: write for example {option} 0.5..4.")
    return np.linspace(low, high, count)


def phase_frame(diagram: PhaseDiagram, line: np.ndarray) -> pd.DataFrame:
    """Return one row per point of the plane.

    The columns are those of `PhaseDiagram.frame`, `trainable_depth` as in `FixedPoint`, and `critical_sigma_w`: σ_w of
    the critical line at that σ_b, NaN where it has no such point.
    """
    frame = diagram.frame()
    with np.errstate(divide="ignore"):
        scale = np.where(np.isinf(frame["q_star"]), 1 / np.abs(np.log(frame["chi_1"])), np.abs(frame["xi_c"]))
    frame["trainable_depth"] = TRAINABLE_SCALES * scale
    frame["critical_sigma_w"] = np.repeat(line, len(diagram.sigma_w))
    return frame


def map_title(act: Activation) -> str:
    """Return the activation's name with its parameters."""
    own = ", ".join(f"{key}={value:g}" for key, value in act.parameters.items())
    return f"{act.name}({own})" if own else act.name


def scheme_mark(config: Config) -> tuple[str, float, float] | None:
    """Return a scheme's name, σ_w and σ_b of its hidden layers, or None where theory has no such point."""
    point = forecast_config(config).point
    return None if point is None else (option_name(config.init), point.sigma_w, point.sigma_b)


def critical_line_repels(act: Activation, sigma_b: np.ndarray) -> bool:
    """Return whether the critical line repels at one of at most five of these σ_b."""
    few = sigma_b[np.unique(np.linspace(0, len(sigma_b) - 1, 5).astype(int))] if len(sigma_b) else sigma_b
    return any(not critical(act, sigma_b=float(bias)).stable for bias in few)


def phase_summary(frame: pd.DataFrame, line: np.ndarray, sigma_b: np.ndarray) -> str:
    """Return one line: the share of each phase in the plane, and the ends of the critical line."""
    shares = frame["phase"].value_counts(normalize=True)
    parts = [f"{shares[phase]:.0%} {phase}" for phase in ("ordered", "critical", "chaotic") if phase in shares]
    defined = np.flatnonzero(np.isfinite(line))
    if not len(defined):
        return f"{', '.join(parts)}; there is no critical line for these sigma_b"
    ends = dict.fromkeys((defined[0], defined[-1]))
    points = " to ".join(f"({line[k]:.4g}, {sigma_b[k]:.3g})" for k in ends)
    return f"{', '.join(parts)}; critical line through (sigma_w, sigma_b) {points}"
