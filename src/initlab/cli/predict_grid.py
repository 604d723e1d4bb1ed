"""From configurations to forecasts: one network layer by layer, or a grid ranked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from initlab.activations import Activation
from initlab.config import Config
from initlab.config.checks import OWN_SHAPE_MODELS
from initlab.config.grid import compose_grid
from initlab.data import Dataset
from initlab.errors import UserError
from initlab.experiment import config_refusal
from initlab.experiment.build import build_activation, build_module, load_data, make_plan, scheme_arguments
from initlab.experiment.predictions import first_batch
from initlab.initialize import plan as plan_of
from initlab.initialize import request
from initlab.prediction import NetworkForecast, RankedNetwork, forecast_network, score_networks, sort_by_score
from initlab.records.columns import flatten
from initlab.schemes import SCHEMES
from initlab.sweep.cells import select_cells

FORECAST_KEYS = ("init", "act", "model", "data", "depth", "width")
"""What a forecast depends on; seeds, rates and lengths of training are not among it."""
ALWAYS_SHOWN = ("act", "init", "depth")


@dataclass
class SharedInputs:
    """What the cells of a grid share is read and resolved once."""

    data: dict[str, tuple[Dataset, float]] = field(default_factory=dict)
    acts: dict[str, Activation] = field(default_factory=dict)

    def data_of(self, config: Config) -> tuple[Dataset, float]:
        """Return a configuration's data set, and the second moment of the inputs of its first batch."""
        key = json.dumps([config.data, config.train.batch_size], default=str)
        if key not in self.data:
            found = load_data(config, torch.device("cpu"))
            batch = first_batch(found, make_plan([config], found, None))
            self.data[key] = found, float(batch.double().square().mean())
        return self.data[key]

    def act_of(self, config: Config) -> Activation | None:
        """Return a configuration's activation, one record for equal ones: theory remembers by it."""
        key = json.dumps([config.act, config.model["name"]], default=str)
        if key not in self.acts:
            found = build_activation(config)
            if found is None:
                return None
            self.acts[key] = found
        return self.acts[key]


def compose_forecasts(overrides: Sequence[str]) -> list[Config]:
    """Compose a grid as `train.py -m` does, without what differs in nothing that a forecast looks at.

    Raises UserError naming the key, the value and the remedy.
    """
    configs, _ = compose_grid(overrides)
    kept = [configs[k] for k in select_cells(configs, repeats=bool(configs[0].sweep.grids))]
    return list({forecast_key(config): config for config in reversed(kept)}.values())[::-1]


def forecast_key(config: Config) -> str:
    """Return what decides a configuration's forecast, as a text."""
    plain = {name: getattr(config, name) for name in FORECAST_KEYS}
    return json.dumps([plain, config.train.batch_size], sort_keys=True, default=str)


def forecast_config(config: Config) -> NetworkForecast:
    """Forecast one network layer by layer, on the batch that its training would begin with.

    Raises UserError when it cannot exist, or when theory knows nothing of its scheme.
    """
    reason = config_refusal(config)
    if reason is not None:
        raise UserError(reason)
    if not has_law(config):
        raise UserError(
            f"init={config.init['name']} looks at more than theory knows (data, a loss, the whole network): train it, "
            "or choose a scheme of `initlab schemes`."
        )
    data = load_data(config, torch.device("cpu"))
    act = build_activation(config)
    with torch.device("cpu" if config.model["name"] in OWN_SHAPE_MODELS else "meta"):
        module = build_module(config, data, act)
    arguments = scheme_arguments(config, act)
    gain = arguments["gain"]
    tasks = plan_of(module, request(arguments.pop("scheme"), **arguments))
    inputs = first_batch(data, make_plan([config], data, act))
    return forecast_network(module, tasks, inputs, act=act, classes=data.classes, gain=gain)


def has_law(config: Config) -> bool:
    """Is it a scheme that promises a law?"""
    return config.init["name"] in (*SCHEMES, "custom")


def rank_configs(configs: Sequence[Config]) -> pd.DataFrame:
    """Rank a grid: one row per cell, best first, with a column for every key that differs between cells."""
    known = SharedInputs()
    cells: list[RankedNetwork] = []
    places: list[int] = []
    for number, config in enumerate(configs):
        act = known.act_of(config)
        if act is not None and config.model["name"] not in OWN_SHAPE_MODELS and has_law(config):
            cells.append(ranked_network(config, act, *known.data_of(config)))
            places.append(number)
    found = score_networks(cells)
    found.index = pd.Index(places)
    frame = found.reindex(range(len(configs)))
    frame["reason"] = frame["reason"].astype(object)
    silent = frame["score"].isna() & frame["reason"].isna() & ~(frame["q"] == 0)
    frame.loc[silent, "reason"] = "theory has no answer"
    frame.loc[frame["q"] == 0, "reason"] = "nothing gets through: every preactivation is 0"
    for place, (key, values) in enumerate(differing_keys(configs).items()):
        frame.insert(place, key, values)
    return sort_by_score(frame)


def ranked_network(config: Config, act: Activation, data: Dataset, second_moment: float) -> RankedNetwork:
    """Return a configuration as a cell."""
    arguments = scheme_arguments(config, act)
    scheme = arguments.pop("scheme")
    del arguments["act"]
    width = tuple(config.width) if isinstance(config.width, (list, tuple)) else config.width
    options = {key: value for key, value in config.model.items() if key != "name"}
    shape, outputs = data.input_shape, data.outputs
    return RankedNetwork(
        act, scheme, config.depth, width, config.model["name"], shape, outputs, second_moment, arguments, options
    )


def differing_keys(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Return the keys that differ between configurations, with their values; act, init and depth always."""
    flat = [flatten({name: getattr(config, name) for name in FORECAST_KEYS}) for config in configs]
    keys = list(dict.fromkeys([*ALWAYS_SHOWN, *(key for one in flat for key in one)]))
    chosen = {key: [str(v) if isinstance(v := one.get(key), (list, tuple)) else v for one in flat] for key in keys}
    own = {"init.name", "act.name"}
    return {
        key: values for key, values in chosen.items() if key in ALWAYS_SHOWN or (key not in own and _differ(key, flat))
    }


def _differ(key: str, flat: Sequence[dict[str, Any]]) -> bool:
    """Does a key take several values? One that an option alone has does not tell cells of other options apart."""
    group, _, leaf = key.partition(".")
    having = [one for one in flat if key in one]
    if not leaf:
        return len({str(one[key]) for one in having}) > 1
    options = {one.get(group) for one in having}
    return any(len({str(one[key]) for one in having if one.get(group) == option}) > 1 for option in options)
