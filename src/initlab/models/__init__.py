"""Families of networks by (depth, width, act). They do not initialize themselves, and declare their weights' roles.

Depth is the number of hidden layers, each followed by an activation, so weight layers = depth + 1; `resmlp`, `vit`
and `gpt` count blocks, `resnet` blocks per stage. A list of widths has length `depth`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import UserError, did_you_mean
from initlab.models.external import custom_model, vision_model
from initlab.models.layers import Dropout, MeanPool, NetworkSpec, ResidualSum, WeightLayer
from initlab.models.plain import NORMS_1D, NORMS_2D, cnn, mlp
from initlab.models.residual import resmlp, resnet
from initlab.models.transformer import NORM_PLACES, gpt, transformer_shape, vit
from initlab.system.imports import is_target

__all__ = ["MODELS", "Dropout", "MeanPool", "Model", "NetworkSpec", "ResidualSum", "WeightLayer", "build"]


@dataclass(frozen=True)
class Model:
    """One family of networks.

    What a network of it is made of stands in its module: `weight_layers` and `structure` (roles, theory) and
    `only_calls_children` (ensembles).

    Attributes:
        name: the option `model=…`.
        build: `build(spec, **options) -> nn.Module`.
        reference: where it is from.
        options: its own keys `model.*` with their defaults.
        norms: the choices of `model.norm`.
        roles: what its weights are for, besides first, hidden and readout.
        depth_means: what `depth` counts.
        shape: `given` where it needs depth, width and act, `own` where it refuses them, `any` where it may ignore them.
        tokens: takes characters and predicts the next one.
    """

    name: str
    build: Callable[..., nn.Module]
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    depth_means: str = "hidden layers"
    shape: str = "given"
    tokens: bool = False


def _defaults(*functions: Callable[..., Any]) -> dict[str, Any]:
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


_ATTENTION_ROLES = ("q", "k", "v", "branch_end")

# fmt: off
MODELS: dict[str, Model] = {row.name: row for row in (
    Model("mlp", mlp, "Rumelhart et al. 1986", _defaults(mlp), tuple(NORMS_1D)),
    Model("cnn", cnn, "LeCun et al. 1989; plain and deep as in Xiao et al. 2018", _defaults(cnn), tuple(NORMS_2D)),
    Model("resmlp", resmlp, "He et al. 2016; Hanin & Rolnick 2018 for the multiplier", _defaults(resmlp),
          tuple(NORMS_1D), ("branch_end",), "blocks"),
    Model("resnet", resnet, "He et al. 2015, the CIFAR form", _defaults(resnet), tuple(NORMS_2D),
          ("branch_end", "shortcut"), "blocks per stage"),
    Model("vit", vit, "Dosovitskiy et al. 2021", _defaults(transformer_shape, vit), NORM_PLACES, _ATTENTION_ROLES,
          "blocks"),
    Model("gpt", gpt, "Radford et al. 2019", _defaults(transformer_shape), NORM_PLACES,
          ("embedding", *_ATTENTION_ROLES), "blocks", tokens=True),
    Model("torchvision", vision_model, "torchvision's classifiers", _defaults(vision_model), shape="own"),
    Model("custom", custom_model, "your own", _defaults(custom_model), shape="any"),
)}
# fmt: on


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

    The global random state is left as found.

    Args:
        name: a family of `MODELS`, or `package.module:function`.
        depth: at least 1 (default 5); what it counts is `Model.depth_means`.
        width: units per layer, or a list of them (default 128).
        act: activation by name, record or callable (default tanh).
        input_shape: shape of one sample.
        classes: number of outputs.
        options: the family's own, `Model.options`.

    Raises:
        UserError: an unknown family or option, or a depth or width that cannot be.

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
    if model.shape == "own":
        shape = {"depth": depth, "width": width, "act": act}
        if asked := [key for key, value in shape.items() if value is not None]:
            keys = ", ".join(asked)
            raise UserError(f"{asked[0]} cannot be set for model={name}, which has its own: leave {keys} out.")
    depth = 5 if depth is None else depth
    width = 128 if width is None else width
    if not isinstance(depth, int) or depth < 1:
        raise UserError(f"depth={depth!r} must be a whole number of {model.depth_means}, at least 1: say depth=3.")
    if not isinstance(width, (int, list, tuple)) or (isinstance(width, int) and width < 1):
        raise UserError(f"width={width!r} must be a whole number of at least 1 unit, or a list: say width=128.")
    dropout = options.get("dropout", 0.0)
    if "dropout" in model.options and not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
        raise UserError(f"model.dropout={dropout!r} must be a fraction in [0, 1): say model.dropout=0.1.")
    spec = NetworkSpec(name, depth, width, activation("tanh" if act is None else act), tuple(input_shape), classes)
    with torch.random.fork_rng(devices=[]):
        return model.build(spec, **options)
