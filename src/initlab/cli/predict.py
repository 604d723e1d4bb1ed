"""`initlab predict`: what theory says of a network, a grid or a plane of (σ_w, σ_b), before anything is trained."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from initlab.cli.output import to_json, write
from initlab.cli.predict_grid import axes, composed, foreseen, ranked
from initlab.cli.predict_screen import show_outlook, show_ranking
from initlab.config import Config
from initlab.errors import UserError
from initlab.prediction import Outlook
from initlab.system.escape import print
from initlab.system.imports import option_name

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
        from initlab.cli.predict_map import draw

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
