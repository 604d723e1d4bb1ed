"""`initlab predict`: what theory says of a network, a grid or a plane of (σ_w, σ_b), before anything is trained."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from initlab.cli.output import output_json, write_csv
from initlab.cli.predict_grid import compose_forecasts, differing_keys, forecast_config, rank_configs
from initlab.cli.predict_screen import print_outlook, print_ranking
from initlab.config import Config
from initlab.errors import UserError
from initlab.prediction import NetworkForecast
from initlab.system.escape import print
from initlab.system.imports import option_name

POINT_FIELDS = ("sigma_w", "sigma_b", "q_star", "kind", "phase", "chi_1", "chi_q", "c_star", "xi_q", "xi_c", "xi_grad")


def run_predict(
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
        from initlab.cli.predict_map import draw_phase_map

        draw_phase_map(overrides, sigma_w, sigma_b, points, out, csv, as_json)
        return
    for option, value in (("--sigma-w", sigma_w), ("--sigma-b", sigma_b), ("--points", points), ("--out", out)):
        if value is not None:
            raise UserError(f"{option} {value} belongs to the map of phases: add --map, or leave it out.")
    configs = compose_forecasts(overrides)
    if len(configs) == 1:
        predict_network(configs[0], every, as_json, csv)
    else:
        predict_grid(configs, every, as_json, csv)


def predict_network(config: Config, every: bool, as_json: bool, csv: str | None) -> None:
    """Print the forecast of one network."""
    found = forecast_config(config)
    write_csv(found.frame, csv)
    if as_json:
        print(output_json(forecast_record(config, found)))
    else:
        print_outlook(forecast_title(config), found, every)


def predict_grid(configs: Sequence[Config], every: bool, as_json: bool, csv: str | None) -> None:
    """Print the ranking of a grid."""
    frame = rank_configs(configs)
    write_csv(frame, csv)
    if as_json:
        print(output_json({"cells": frame.to_dict("records")}))
    else:
        print_ranking(frame, list(differing_keys(configs)), every)


def forecast_title(config: Config) -> str:
    """Say in one line what is looked at.

    >>> forecast_title(Config())
    'mlp · init=glorot_uniform act=tanh depth=5 width=128 · fashion_mini, batch of 128'
    """
    shape = f"depth={config.depth} width={config.width}" if config.depth is not None else ""
    model, init, act, data = map(option_name, (config.model, config.init, config.act, config.data))
    asked = f"init={init} act={act} {shape}".strip()
    return f"{model} · {asked} · {data}, batch of {config.train.batch_size}"


def forecast_record(config: Config, found: NetworkForecast) -> dict[str, Any]:
    """Return a forecast as plain values: names, phase, verdict and rows."""
    names = {group: option_name(getattr(config, group)) for group in ("model", "init", "act")}
    point = {} if found.point is None else {name: getattr(found.point, name) for name in POINT_FIELDS}
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
