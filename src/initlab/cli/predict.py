"""`initlab predict`: what theory says of a network, a grid or a plane of (σ_w, σ_b), before anything is trained."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from initlab.cli.output import output_json, write_csv
from initlab.cli.predict_grid import compose_forecasts, forecast_axes, forecast_config, rank_configs
from initlab.cli.predict_screen import print_forecast, print_ranking
from initlab.config import Config
from initlab.errors import UserError
from initlab.prediction import NetworkForecast
from initlab.system.escape import print
from initlab.system.imports import option_name

POINT_FIELDS = (
    *("sigma_w", "sigma_b", "q_star", "kind", "phase"),
    *("chi_1", "chi_q", "c_star", "xi_q", "xi_c", "xi_grad", "trainable_depth"),
)


def run_predict(
    overrides: Sequence[str] | None,
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
    """Print the forecast of one network, the ranking of a grid, or write the map of phases.

    Args:
        overrides: as for `train`.
        chart: write the map; the next four options are of the map alone, as in `draw_phase_map`.
        sigma_w: its range.
        sigma_b: its range.
        points: how many along each axis.
        out: file of the page.
        every: print a row for every layer, or for every cell of the grid.
        as_json: print JSON.
        csv: file that the rows are written to.

    Raises:
        UserError: a key, a value or a combination cannot be, or a file cannot be written.
    """
    overrides = overrides or ()
    if chart:
        from initlab.cli.predict_map import draw_phase_map

        draw_phase_map(overrides, sigma_w, sigma_b, points, out, csv, as_json)
        return
    for option, value in (("--sigma-w", sigma_w), ("--sigma-b", sigma_b), ("--points", points), ("--out", out)):
        if value is not None:
            raise UserError(f"{option} {value} belongs to the map of phases: add --map, or leave it out.")
    configs = compose_forecasts(overrides)
    if len(configs) > 1:
        frame = rank_configs(configs)
        write_csv(frame, csv)
        if as_json:
            print(output_json({"cells": frame.to_dict("records")}))
        else:
            print_ranking(frame, list(forecast_axes(configs)), every)
        return
    forecast = forecast_config(configs[0])
    write_csv(forecast.frame, csv)
    if as_json:
        print(output_json(forecast_record(configs[0], forecast)))
    else:
        print_forecast(forecast_title(configs[0]), forecast, every)


def forecast_title(config: Config) -> str:
    """Return one line about the network and its data.

    >>> forecast_title(Config())
    'mlp · init=glorot_uniform act=tanh depth=5 width=128 · fashion_mini, batch of 128'
    """
    shape = f"depth={config.depth} width={config.width}" if config.depth is not None else ""
    model, init, act, data = map(option_name, (config.model, config.init, config.act, config.data))
    options = f"init={init} act={act} {shape}".strip()
    return f"{model} · {options} · {data}, batch of {config.train.batch_size}"


def forecast_record(config: Config, forecast: NetworkForecast) -> dict[str, Any]:
    """Return a forecast as plain values: names, fixed point, verdict and rows."""
    point = {} if forecast.point is None else {name: getattr(forecast.point, name) for name in POINT_FIELDS}
    return {
        **{group: option_name(getattr(config, group)) for group in ("model", "init", "act")},
        "depth": config.depth,
        "width": config.width,
        "data": option_name(config.data),
        "verdict": forecast.verdict,
        "causes": [asdict(cause) for cause in forecast.causes],
        "critical_gain": forecast.critical_gain,
        **point,
        "rows": forecast.frame.to_dict("records"),
    }
