"""`initlab predict`: what theory says of a network, a grid or a plane of (σ_w, σ_b), before anything is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from initlab.config import Config
from initlab.errors import UserError
from initlab.names import option_name
from initlab.predicting.cells import axes, composed, foreseen, ranked
from initlab.predicting.screen import show_outlook, show_ranking
from initlab.prediction import Outlook
from initlab.visible import json_text, print

POINT = ("sigma_w", "sigma_b", "q_star", "kind", "phase", "chi_1", "chi_q", "c_star", "xi_q", "xi_c", "xi_grad")


def run(
    overrides: Sequence[str],
    *,
    chart: bool = False,
    sigma_w: str | None = None,
    sigma_b: str | None = None,
    points: int | None = None,
    out: str | None = None,
    every: bool = False,
    as_json: bool = False,
    csv: str | None = None,
) -> None:
    """Forecast what the overrides name, and print it.

    Raises:
        UserError: a key, a value or a combination cannot be, or a file cannot be written.
    """
    if chart:
        from initlab.predicting.chart import draw

        draw(overrides, sigma_w, sigma_b, points, out, csv, as_json)
        return
    for option, value in (("--sigma-w", sigma_w), ("--sigma-b", sigma_b), ("--points", points), ("--out", out)):
        if value is not None:
            raise UserError(f"{option} {value} belongs to the map of phases: add --map, or leave it out.")
    configs = composed(overrides)
    if len(configs) == 1:
        one(configs[0], every, as_json, csv)
    else:
        several(configs, every, as_json, csv)


def one(config: Config, every: bool, as_json: bool, csv: str | None) -> None:
    """Print the forecast of one network."""
    found = foreseen(config)
    write(found.frame, csv)
    if as_json:
        print(to_json(as_record(config, found)))
    else:
        show_outlook(title(config), found, every)


def several(configs: Sequence[Config], every: bool, as_json: bool, csv: str | None) -> None:
    """Print the ranking of a grid."""
    frame = ranked(configs)
    write(frame, csv)
    if as_json:
        print(to_json({"cells": frame.to_dict("records")}))
    else:
        show_ranking(frame, list(axes(configs)), every)


def title(config: Config) -> str:
    """Say in one line what is looked at.

    >>> title(Config())
    'mlp · init=glorot_uniform act=tanh depth=5 width=128 · fashion_mini, batch of 128'
    """
    shape = f"depth={config.depth} width={config.width}" if config.depth is not None else ""
    model, init, act, data = map(option_name, (config.model, config.init, config.act, config.data))
    asked = f"init={init} act={act} {shape}".strip()
    return f"{model} · {asked} · {data}, batch of {config.train.batch_size}"


def as_record(config: Config, found: Outlook) -> dict[str, Any]:
    """Return a forecast as plain values: names, phase, verdict and rows."""
    names = {group: option_name(getattr(config, group)) for group in ("model", "init", "act")}
    point = {} if found.point is None else {name: getattr(found.point, name) for name in POINT}
    if found.point is not None:
        point["trainable_depth"] = found.point.trainable_depth
    return {
        **names,
        "depth": config.depth,
        "width": config.width,
        "data": option_name(config.data),
        "verdict": found.verdict,
        "causes": [asdict(cause) for cause in found.causes],
        "critical_gain": found.critical_gain,
        **point,
        "rows": found.frame.to_dict("records"),
    }


def to_json(value: Any) -> str:
    """Write JSON; what is no number there is null, infinities are their names.

    >>> to_json({"a": float("nan"), "b": [float("inf"), 1.5]})
    '{\\n  "a": null,\\n  "b": [\\n    "inf",\\n    1.5\\n  ]\\n}'
    """
    return json_text(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def write(frame: pd.DataFrame, csv: str | None) -> None:
    """Write a frame where somebody wants it.

    Raises:
        UserError: the file cannot be written.
    """
    if csv is None:
        return
    try:
        frame.to_csv(Path(csv), index=False, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"--csv {csv} cannot be written ({error.strerror or error}).") from error
