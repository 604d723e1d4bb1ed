"""How a network of an experiment begins: its model and activation as the scheme wants them, and its weights."""

from typing import Any

import pandas as pd
import torch
from torch import nn

from initlab.activations import Activation
from initlab.config import Config
from initlab.data import Dataset
from initlab.errors import Impossible
from initlab.initialize import fill_
from initlab.initialize.procedures import PROCEDURES, Procedure, initialize_, rates
from initlab.models import MODELS
from initlab.system.random_streams import generator
from initlab.training import OPTIMIZERS

COMMON_KEYS = ("name", "gain", "sigma_b")  # of `init`; the others are parameters of the scheme


def scheme_parameters(config: Config) -> dict[str, Any]:
    """Return the keys `init.*` that are parameters of the scheme."""
    return {k: v for k, v in config.init.items() if k not in COMMON_KEYS}


def procedure_of(config: Config) -> Procedure | None:
    """Return the procedure that `init=` names, its keys bound; None for a plain scheme."""
    procedure = PROCEDURES.get(config.init["name"])
    return None if procedure is None else procedure.bind(**scheme_parameters(config))


def model_options(config: Config) -> dict[str, Any]:
    """Return the keys `model.*`, with what the procedure sets in place of their defaults.

    Raises:
        Impossible: the model has no such option, or another value was asked for.
    """
    name = config.model["name"]
    options = {k: v for k, v in config.model.items() if k != "name"}
    procedure = procedure_of(config)
    if procedure is None or name not in MODELS or MODELS[name].shape != "given":
        return options
    for key, value in procedure.overrides.items():
        if key not in options:
            if key in procedure.optional:
                continue
            fitting = [m.name for m in MODELS.values() if key in m.options]
            raise Impossible(
                f"init={procedure.name} needs model.{key}={value}, which model={name} has not: "
                f"choose model={', '.join(fitting)}."
            )
        if options[key] not in (MODELS[name].options[key], value):
            raise Impossible(
                f"init={procedure.name} brings model.{key}={value} with it, so model.{key}={options[key]} cannot be: "
                "leave it out."
            )
        options[key] = value
    return options


def reshape_activation(config: Config, act: Activation) -> Activation:
    """Return the activation as the procedure wants it; most leave it as it is."""
    procedure = procedure_of(config)
    if procedure is None or procedure.reshape is None:
        return act
    return procedure.reshape(act, config.depth, **procedure.parameters)


def initialize_network_(module: nn.Module, config: Config, data: Dataset, arguments: dict[str, Any]) -> pd.DataFrame:
    """Initialize a network on the CPU and return one row per parameter, as `initlab.initialize_` does.

    A procedure that needs data gets `init.batch` training samples, drawn by a separate stream of the seed.

    Args:
        module: on the CPU.
        config: of the network.
        data: the data set.
        arguments: of a plain scheme.
    """
    procedure = procedure_of(config)
    if procedure is None:
        return fill_(module, seed=config.seed, **arguments)
    batch: dict[str, Any] = {}
    if "data" in procedure.needs:
        count = min(int(procedure.parameters["batch"]), len(data.train_x))
        index = torch.randperm(len(data.train_x), generator=generator("procedure batch", config.seed))[:count]
        index, dtype = index.to(data.train_x.device), next(module.parameters()).dtype
        batch["inputs"] = data.prepare(data.train_x[index], dtype).cpu()
        if "loss" in procedure.needs:
            batch["targets"] = data.targets(data.train_y[index], dtype).cpu()
    return initialize_(module, procedure, act=arguments["act"], seed=config.seed, **batch)


def rate_factors(config: Config, module: nn.Module) -> list[float] | None:
    """Return the factor on the rate of every trained parameter, in order; None where all are 1."""
    procedure = procedure_of(config)
    if procedure is None or procedure.multipliers is None:
        return None
    # Schemes tell two kinds of optimizers apart: those that divide gradients by their size, and the others.
    factors = rates(module, procedure, "adam" if OPTIMIZERS[config.optim["name"]].adaptive else "sgd")
    return [factors.get(name, 1.0) for name, p in module.named_parameters() if p.requires_grad]
