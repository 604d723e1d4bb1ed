"""From a configuration to the parts of a training: data, activation, network, plan."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from initlab import data as datasets
from initlab import models
from initlab.activations import Activation, activation
from initlab.config import Config
from initlab.config.checks import MAX_COUNTS
from initlab.data import Dataset
from initlab.errors import Impossible, UserError
from initlab.experiment.initialization import (
    initialize_network_,
    model_options,
    procedure_of,
    reshape_activation,
    scheme_parameters,
)
from initlab.initialize import scheme_refusal
from initlab.initialize.procedures import procedure_refusal
from initlab.system.device import pick_device
from initlab.training import TrainingPlan, log_spaced

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build_activation(config: Config) -> Activation | None:
    """Return the activation that `act=` names with its own keys; None where the model brings its own."""
    if config.model["name"] == "torchvision":
        return None
    parameters = {k: v for k, v in config.act.items() if k != "name"}
    return reshape_activation(config, activation((config.act["name"], parameters)))


def load_data(config: Config, device: torch.device) -> Dataset:
    """Load the data set named in the configuration."""
    options = {k: v for k, v in config.data.items() if k != "name"}
    return datasets.load_dataset(config.data["name"], device=device, **options)


def build_module(config: Config, data: Dataset, act: Activation | None) -> nn.Module:
    """Build the network that a configuration asks for, not yet initialized.

    Raises:
        Impossible: a model of characters meets other data, or such data another model.
    """
    family = models.MODELS.get(config.model["name"])
    if family is not None and family.shape == "given" and family.tokens != data.tokens:
        fitting = "data=tiny_text" if family.tokens else "model=gpt"
        raise Impossible(f"model={family.name} cannot read data={data.name}: choose {fitting}.")
    return models.build(
        config.model["name"],
        depth=config.depth,
        width=config.width,
        act=act,
        input_shape=data.input_shape,
        classes=data.outputs,
        **model_options(config),
    )


def scheme_arguments(config: Config, act: Activation | None) -> dict[str, Any]:
    """Return the keys `init.*` as arguments of `initialize_`, without the seed."""
    return {
        "scheme": config.init["name"],
        "act": act or "linear",
        "gain": config.init.get("gain", "paper"),
        "sigma_b": config.init.get("sigma_b"),
        "parameters": scheme_parameters(config),
    }


def config_refusal(config: Config) -> str | None:
    """Return why a configuration cannot exist (dirac on an mlp), or None; nothing is written or allocated.

    Raises:
        UserError: it is wrong rather than impossible: an unknown name, a bad value, a device or data that is not there.
    """
    pick_device(config.device)
    data = load_data(config, torch.device("cpu"))
    try:
        act = build_activation(config)
        make_plan([config], data, act)
        with torch.device("meta"):
            module = build_module(config, data, act)
    except Impossible as reason:
        return str(reason)
    except UserError:
        raise
    except Exception:
        # The user's own model, or torchvision's, may do without the meta device; the run itself records a bug.
        if models.MODELS[config.model["name"]].shape == "given":
            raise
        return None
    if config.train.batch_size == 1 and rejects_single_sample(module, data):
        norm = "model.norm=batch" if config.model.get("norm") == "batch" else "batch normalization"
        return f"{norm} cannot be with train.batch_size=1, which has no variance: say train.batch_size=2 or more."
    if (procedure := procedure_of(config)) is not None:
        return procedure_refusal(module, procedure, act=act or "linear")
    return scheme_refusal(module, **scheme_arguments(config, act))


def rejects_single_sample(module: nn.Module, data: Dataset) -> bool:
    """Return whether a network, on the meta device, normalizes over a batch where one sample has no variance."""
    if not any(isinstance(part, BATCH_NORMS) for part in module.modules()):
        return False
    try:
        module.train()(torch.empty(1, *data.input_shape, device="meta"))
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    except Exception:  # the user's own model may do without the meta device
        return False
    return False


def build_network(
    config: Config, data: Dataset, act: Activation | None, device: torch.device
) -> tuple[nn.Module, pd.DataFrame]:
    """Build one network and initialize it; return it with one row per parameter."""
    module = build_module(config, data, act)
    module = module.to(dtype=torch.float64) if config.precision == "fp64" else module
    rows = initialize_network_(module, config, data, scheme_arguments(config, act))
    return module.to(device), rows


def make_plan(configs: Sequence[Config], data: Dataset, act: Activation | None) -> TrainingPlan:
    """Return the plan of the training loop, from the keys that networks share and the rates of each.

    Raises:
        UserError: a batch is larger than the data, or the training has too many updates.
    """
    first = configs[0]
    batch = first.train.batch_size
    per_epoch = len(data.train_x) // batch
    if not per_epoch:
        raise UserError(
            f"train.batch_size={batch} is more than the {len(data.train_x)} training samples of data={data.name}: "
            f"say train.batch_size={len(data.train_x)} or less."
        )
    steps = first.train.steps or max(math.ceil(first.train.epochs * per_epoch), 1)
    if steps > MAX_COUNTS["train.steps"]:
        raise UserError(
            f"train.epochs={first.train.epochs:g} are {steps:.3g} updates: say {MAX_COUNTS['train.steps']:,} or fewer."
        )
    loop_keys = ("name", "schedule", "warmup")
    return TrainingPlan(
        steps=steps,
        batch_size=batch,
        optimizer=first.optim["name"],
        hyper=tuple({k: v for k, v in c.optim.items() if k not in loop_keys} for c in configs),
        data_seed=first.data.get("seed", 0),
        schedule=first.optim.get("schedule", "constant"),
        warmup=first.optim.get("warmup", 0),
        log_every=first.log.every,
        eval_every=first.log.eval_every or per_epoch,
        records=tuple(log_spaced(steps, first.log.histograms)),
        target_loss=first.train.target_loss,
        autocast=first.precision == "bf16",
        dtype=torch.float64 if first.precision == "fp64" else torch.float32,
        saturation=act.saturation if act is not None else None,
    )
