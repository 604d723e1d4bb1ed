"""How a network of an experiment begins: its model and activation as the scheme wants them, and its weights."""

from typing import Any

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

COMMON_KEYS = ("name", "gain", "sigma_b")


def procedure_of(config: Config) -> Procedure | None:
    """Return the procedure that `init=` names, its keys bound; None for a plain scheme."""
    found = PROCEDURES.get(config.init["name"])
    return None if found is None else found.bind(**{k: v for k, v in config.init.items() if k not in COMMON_KEYS})


def model_options(config: Config) -> dict[str, Any]:
    """Return the keys `model.*`, with what the procedure brings in place of their defaults.

    Raises Impossible when the model has no such option, or another value was asked for.
    """
    name = config.model["name"]
    options = {k: v for k, v in config.model.items() if k != "name"}
    found = procedure_of(config)
    if found is None or name not in MODELS or MODELS[name].shape != "given":
        return options
    defaults = MODELS[name].options
    for key, value in found.overrides.items():
        if key not in options:
            if key in found.optional:
                continue
            fitting = [m.name for m in MODELS.values() if key in m.options]
            raise Impossible(
                f"init={found.name} needs model.{key}={value}, which model={name} has not: "
                f"choose model={', '.join(fitting)}."
            )
        if options[key] not in (defaults[key], value):
            raise Impossible(
                f"init={found.name} brings model.{key}={value} with it, so model.{key}={options[key]} cannot be: "
                "leave it out."
            )
        options[key] = value
    return options


def reshape_activation(config: Config, act: Activation) -> Activation:
    """Return the activation as the procedure wants it; most leave it as it is."""
    found = procedure_of(config)
    if found is None or found.reshape is None:
        return act
    return found.reshape(act, config.depth, **found.parameters)


def initialize_network_(module: nn.Module, config: Config, data: Dataset, arguments: dict[str, Any]) -> Any:
    """Initialize a network on the CPU and return one row per parameter; `arguments` are those of a plain scheme.

    A procedure that looks at data gets `init.batch` training samples, drawn by a stream of the seed's own.
    """
    found = procedure_of(config)
    if found is None:
        return fill_(module, seed=config.seed, **arguments)
    given: dict[str, Any] = {}
    if "data" in found.needs:
        count = min(int(found.parameters["batch"]), len(data.train_x))
        index = torch.randperm(len(data.train_x), generator=generator("procedure batch", config.seed))[:count]
        dtype = next(module.parameters()).dtype
        index = index.to(data.train_x.device)
        given["inputs"] = data.prepare(data.train_x[index], dtype).cpu()
        if "loss" in found.needs:
            given["targets"] = data.targets(data.train_y[index], dtype).cpu()
    return initialize_(module, found, act=arguments["act"], seed=config.seed, **given)


def rate_factors(config: Config, module: nn.Module) -> list[float] | None:
    """Return the factor on the rate of every trained parameter, in order; None where all are 1."""
    found = procedure_of(config)
    if found is None or found.multipliers is None:
        return None
    # Schemes tell two kinds of optimizers apart: those that divide gradients by their size, and the others.
    factors = rates(module, found, "adam" if OPTIMIZERS[config.optim["name"]].adaptive else "sgd")
    return [factors.get(name, 1.0) for name, p in module.named_parameters() if p.requires_grad]
