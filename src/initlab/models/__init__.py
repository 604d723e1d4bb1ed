"""Families of networks by (depth, width, act): they know nothing of initialization and declare their weights' roles.

Depth is the number of hidden layers, each followed by an activation, so weight layers = depth + 1; `resmlp`, `vit`
and `gpt` count blocks, `resnet` blocks per stage. A list of widths has length `depth`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import UserError, did_you_mean
from initlab.models.external import custom_model, vision_model
from initlab.models.layers import Dropout, WeightLayer
from initlab.models.plain import cnn, mlp
from initlab.models.residual import resmlp, resnet
from initlab.models.transformer import gpt, vit
from initlab.system.imports import is_target

__all__ = ["MODELS", "Dropout", "Model", "WeightLayer", "build"]


@dataclass(frozen=True)
class Model:
    """One family: its builder, its own options (the keys `model.*`) with their defaults, and where it is from."""

    name: str
    build: Callable[..., nn.Module]
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shaped: bool = True  # takes depth, width and act
    tokens: bool = False  # takes characters and predicts the next one


_TRANSFORMER_OPTIONS = {"heads": 2, "branch": 1.0, "residual": 1.0, "attention_power": 0.5}


MODELS: dict[str, Model] = {
    m.name: m
    for m in (
        Model("mlp", mlp, "Rumelhart et al. 1986", {"norm": "none", "dropout": 0.0}),
        Model(
            "cnn",
            cnn,
            "LeCun et al. 1989; plain and deep as in Xiao et al. 2018",
            {"norm": "none", "dropout": 0.0, "kernel": 3, "padding": "circular", "downsample": 2},
        ),
        Model(
            "resmlp",
            resmlp,
            "He et al. 2016; Hanin & Rolnick 2018 for the multiplier",
            {"norm": "none", "dropout": 0.0, "branch": 1.0, "shifts": False},
        ),
        Model("resnet", resnet, "He et al. 2015, the CIFAR form", {"norm": "batch", "branch": 1.0, "shifts": False}),
        Model(
            "vit", vit, "Dosovitskiy et al. 2021", {"norm": "pre", "dropout": 0.0, "patch": 4, **_TRANSFORMER_OPTIONS}
        ),
        Model("gpt", gpt, "Radford et al. 2019", {"norm": "pre", "dropout": 0.0, **_TRANSFORMER_OPTIONS}, tokens=True),
        Model(
            "torchvision", vision_model, "torchvision's classifiers", {"arch": "resnet18", "size": None}, shaped=False
        ),
        Model("custom", custom_model, "your own", {"target": None}),
    )
}


def build(
    name: str,
    *,
    depth: int | None = None,
    width: int | Sequence[int] | None = None,
    act: str | Activation | Callable | None = None,
    input_shape: Sequence[int],
    classes: int,
    **options: Any,
) -> nn.Module:
    """Build a network of a family; its weights hold whatever torch left in them until `initialize_` fills them.

    Arguments: `depth` ≥ 1 hidden layers (see the module's text), `width` units per layer or a list of them, `act` an
    activation by name, record or callable, `input_shape` without the batch, `classes` outputs; `options` are the
    family's own. Defaults: depth 5, width 128, act tanh. The global random state is left as found.

    Raises UserError for an unknown family or option, or a depth or width that cannot be.

    >>> net = build("mlp", depth=2, width=8, act="relu", input_shape=(4,), classes=3)
    >>> [layer.name for layer in net.weight_layers]
    ['hidden.0', 'hidden.1', 'readout']
    """
    if is_target(name):
        name, options = "custom", {"target": name, **options}
    if name not in MODELS:
        raise UserError(f"model={name!r} is unknown: choose one of {', '.join(MODELS)}.{did_you_mean(name, MODELS)}")
    model = MODELS[name]
    if unknown := [k for k in options if k not in model.options and name != "custom"]:
        known = ", ".join(f"model.{k}" for k in model.options)
        raise UserError(
            f"model.{unknown[0]} is not an option of model={name}, which has {known}."
            f"{did_you_mean(unknown[0], model.options)}"
        )
    with torch.random.fork_rng(devices=[]):
        if not model.shaped:
            refuse_shape(name, depth=depth, width=width, act=act)
            return model.build(input_shape=tuple(input_shape), classes=classes, **options)
        depth = 5 if depth is None else depth
        width = 128 if width is None else width
        if not isinstance(depth, int) or depth < 1:
            raise UserError(f"depth={depth!r} must be a whole number of at least 1 hidden layer: say depth=3.")
        if not isinstance(width, (int, list, tuple)) or (isinstance(width, int) and width < 1):
            raise UserError(f"width={width!r} must be a whole number of at least 1 unit, or a list: say width=128.")
        dropout = options.get("dropout", 0.0)
        if "dropout" in model.options and not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
            raise UserError(f"model.dropout={dropout!r} must be a fraction in [0, 1): say model.dropout=0.1.")
        return model.build(
            depth=depth,
            width=width,
            act=activation("tanh" if act is None else act),
            input_shape=tuple(input_shape),
            classes=classes,
            **options,
        )


def refuse_shape(name: str, **given: Any) -> None:
    """Raise UserError when depth, width or act is asked of a model that brings its own."""
    if asked := [key for key, value in given.items() if value is not None]:
        raise UserError(f"{asked[0]} cannot be set for model={name}, which has its own: leave {', '.join(asked)} out.")
