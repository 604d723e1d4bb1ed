"""Forecast one configuration layer by layer, or rank those of a grid."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from initlab.activations import Activation
from initlab.config import Config
from initlab.config.grid import compose_grid
from initlab.data import Dataset
from initlab.errors import UserError
from initlab.experiment import config_refusal
from initlab.experiment.build import build_activation, build_module, load_data, make_plan, scheme_arguments
from initlab.experiment.predictions import first_batch
from initlab.initialize import plan as plan_of
from initlab.initialize import request
from initlab.models import MODELS
from initlab.prediction import NetworkForecast, RankedNetwork, forecast_network, score_networks, sort_by_score
from initlab.records.columns import flatten
from initlab.schemes import SCHEMES
from initlab.sweep.cells import select_cells

FORECAST_KEYS = ("init", "act", "model", "data", "depth", "width")
"""What a forecast depends on; seeds, rates and lengths of training are not."""
ALWAYS_SHOWN = ("act", "init", "depth")


def compose_forecasts(overrides: Sequence[str]) -> list[Config]:
    """Compose a grid as `train.py -m` does, and return one configuration for each different forecast."""
    configs, _ = compose_grid(overrides)
    kept = [configs[k] for k in select_cells(configs, repeats=bool(configs[0].sweep.grids))]
    return list({forecast_key(config): config for config in reversed(kept)}.values())[::-1]


def forecast_key(config: Config) -> str:
    """Return what decides a configuration's forecast, as a text."""
    plain = {name: getattr(config, name) for name in FORECAST_KEYS}
    return json.dumps([plain, config.train.batch_size], sort_keys=True, default=str)


def forecast_config(config: Config) -> NetworkForecast:
    """Forecast one network layer by layer, on the batch that its training would begin with.

    Raises:
        UserError: the network cannot exist, or theory has no answer for its scheme.
    """
    reason = config_refusal(config)
    if reason is not None:
        raise UserError(reason)
    if not has_law(config):
        raise UserError(
            f"init={config.init['name']} depends on data, a loss or the whole network, and has no theory here: train "
            "it, or choose a scheme with a law in `initlab schemes`."
        )
    data = load_data(config, torch.device("cpu"))
    act = build_activation(config)
    with torch.device("meta" if MODELS[config.model["name"]].shape == "given" else "cpu"):
        module = build_module(config, data, act)
    arguments = scheme_arguments(config, act)
    gain = arguments["gain"]
    tasks = plan_of(module, request(arguments.pop("scheme"), **arguments))
    inputs = first_batch(data, make_plan([config], data, act))
    return forecast_network(module, tasks, inputs, act=act, classes=data.classes, gain=gain)


def has_law(config: Config) -> bool:
    """Return whether the scheme promises a law of each weight."""
    return config.init["name"] in (*SCHEMES, "custom")


def rank_configs(configs: Sequence[Config]) -> pd.DataFrame:
    """Return one row per configuration, best first, with a column for every key that differs between them.

    Args:
        configs: of a grid.

    Returns:
        The columns of `initlab.prediction.rank` and the keys of `forecast_axes`; `reason` says why a score is missing.
    """
    acts: dict[str, Activation | None] = {}  # one record for equal ones: theory caches by record
    data: dict[str, tuple[Dataset, float]] = {}
    networks: list[RankedNetwork] = []
    positions: list[int] = []
    for position, config in enumerate(configs):
        key = json.dumps([config.act, config.model["name"]], default=str)
        if key not in acts:
            acts[key] = build_activation(config)
        act = acts[key]
        if act is None or MODELS[config.model["name"]].shape != "given" or not has_law(config):
            continue
        key = json.dumps([config.data, config.train.batch_size], default=str)
        if key not in data:
            dataset = load_data(config, torch.device("cpu"))
            batch = first_batch(dataset, make_plan([config], dataset, None))
            data[key] = dataset, float(batch.double().square().mean())
        networks.append(ranked_network(config, act, *data[key]))
        positions.append(position)
    scores = score_networks(networks)
    scores.index = pd.Index(positions)
    frame = scores.reindex(range(len(configs)))
    frame["reason"] = frame["reason"].astype(object)
    unexplained = frame["score"].isna() & frame["reason"].isna() & ~(frame["q"] == 0)
    frame.loc[unexplained, "reason"] = "theory has no answer"
    frame.loc[frame["q"] == 0, "reason"] = "nothing gets through: every preactivation is 0"
    for column, (key, values) in enumerate(forecast_axes(configs).items()):
        frame.insert(column, key, values)
    return sort_by_score(frame)


def ranked_network(config: Config, act: Activation, data: Dataset, second_moment: float) -> RankedNetwork:
    """Return a configuration as a network to rank, on inputs of this second moment."""
    arguments = scheme_arguments(config, act)
    scheme = arguments.pop("scheme")
    del arguments["act"]
    width = tuple(config.width) if isinstance(config.width, (list, tuple)) else config.width
    options = {key: value for key, value in config.model.items() if key != "name"}
    shape, outputs = data.input_shape, data.outputs
    return RankedNetwork(
        act, scheme, config.depth, width, config.model["name"], shape, outputs, second_moment, arguments, options
    )


def forecast_axes(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Return the keys that differ between configurations, with their values; act, init and depth always."""
    flat = [flatten({name: getattr(config, name) for name in FORECAST_KEYS}) for config in configs]
    keys = list(dict.fromkeys([*ALWAYS_SHOWN, *(key for one in flat for key in one)]))
    chosen = {key: [str(v) if isinstance(v := one.get(key), (list, tuple)) else v for one in flat] for key in keys}
    own = {"init.name", "act.name"}
    return {
        key: values for key, values in chosen.items() if key in ALWAYS_SHOWN or (key not in own and _differ(key, flat))
    }


def _differ(key: str, flat: Sequence[dict[str, Any]]) -> bool:
    """Return whether a key takes several values; one of an option's own, among the cells with that option."""
    group, _, leaf = key.partition(".")
    values: dict[Any, set[str]] = {}
    for one in flat:
        if key in one:
            values.setdefault(one.get(group) if leaf else None, set()).add(str(one[key]))
    return any(len(several) > 1 for several in values.values())
