"""What a torch function does to a signal, by its name: which activation it is, or which kind of step.

A module (`nn.GELU()`) and a function (`F.gelu(x)`, `x.relu_()`) call the same few torch functions, so one table serves
models that have modules for their activations and models that have none.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from initlab.activations import ACTIVATIONS, Activation

_OTHER_NAMES = {"atan": "arctan", "expit": "sigmoid"}
"""Name of a torch function -> name of the activation, where they differ."""

_CLAMPS = {(0, None): "relu", (0, 6): "relu6", (-1, 1): "hardtanh"}
_BOUNDED: dict[str, tuple[tuple[str, Any], tuple[str, Any], dict[Any, str]]] = {
    **dict.fromkeys(("clamp", "clip", "clamp_min"), (("min", None), ("max", None), _CLAMPS)),
    "hardtanh": (("min_val", -1.0), ("max_val", 1.0), _CLAMPS),
    "threshold": (("threshold", None), ("value", None), {(0, 0): "relu"}),
}
"""Name of a function with two bounds -> keys and defaults of the bounds, and the activation by their values."""

_PARAMETERS = {
    "leaky_relu": ("negative_slope", "negative_slope"),
    "prelu": ("weight", "negative_slope"),
    "elu": ("alpha", "alpha"),
    "celu": ("alpha", "alpha"),
    "softplus": ("beta", "beta"),
}
"""Name of a function -> key of its second argument, and the parameter of the activation that it sets."""


def function_name(function: Any) -> str:
    """Return a torch function's name without the underscore of its in-place form.

    >>> import torch
    >>> function_name(torch.relu_), function_name(torch.Tensor.__add__)
    ('relu', 'add')
    """
    name = getattr(function, "__name__", "")
    inner: str = name.strip("_")
    special = name.startswith("__") and name.endswith("__") and inner not in ("get", "getitem")
    return inner.removeprefix("r").removeprefix("i") if special else inner


def called_activation(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """Return the record of the activation that a call applies, with its parameters bound; None if it is none known.

    Args:
        name: name of the function, as `function_name` returns it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    >>> called_activation("leaky_relu", (None, 0.2), {}).parameters
    {'negative_slope': 0.2}
    >>> called_activation("clamp", (None,), {"min": 0}).name
    'relu'
    """

    def argument(position: int, key: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(key, default)

    name = _OTHER_NAMES.get(name, name)
    if name in _BOUNDED:
        low, high, activations = _BOUNDED[name]
        bounded = activations.get((argument(1, *low), argument(2, *high)))
        return ACTIVATIONS[bounded] if bounded else None
    if name not in ACTIVATIONS or name == "linear":
        return None
    if name == "gelu" and argument(1, "approximate", "none") == "tanh":
        return ACTIVATIONS["gelu_tanh"]
    if name == "sin":
        return ACTIVATIONS["sin"].bind(omega=1.0)  # a factor inside the sine is part of its argument
    if name not in _PARAMETERS:
        return ACTIVATIONS[name]
    key, parameter = _PARAMETERS[name]
    value = argument(1, key, ACTIVATIONS[name].parameters[parameter])
    value = value.detach().double().mean() if isinstance(value, Tensor) else value
    return ACTIVATIONS[name].bind(**{parameter: float(value)})


NONLINEAR = {"logsigmoid", "tanhshrink", "softshrink", "hardshrink", "glu", "rrelu", "square", "cos", "exp"}
"""Elementwise functions that are activations without a record in initlab."""

LINEAR = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "embedding", "embedding_bag",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "bilinear",
}  # fmt: skip
"""Functions that multiply by a weight, when one of their arguments is a parameter."""

_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize", "local_response_norm"}

_RESHAPES = {
    "view", "reshape", "flatten", "unflatten", "ravel", "permute", "transpose", "swapaxes", "swapdims", "movedim", "t",
    "contiguous", "getitem", "get", "chunk", "split", "tensor_split", "unbind", "cat", "concat", "stack", "squeeze",
    "unsqueeze", "expand", "expand_as", "repeat", "to", "type", "type_as", "float", "double", "half", "bfloat16",
    "clone", "pad", "roll", "narrow", "select", "index_select", "gather", "take_along_dim", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "view_as", "reshape_as", "requires_grad", "unfold", "flip",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
}  # fmt: skip


def signal_step(name: str, traced: int) -> str | None:
    """Return the word for what a function does to `traced` signals, or None where it only moves values.

    `norm`, `sum`, `shift` (something fixed is added), `gate` (signals are multiplied), `scale`, `pool`, `other`.

    >>> signal_step("add", 2), signal_step("reshape", 1), signal_step("softmax", 1)
    ('sum', None, 'other')
    """
    if name in _RESHAPES:
        return None
    if name in _NORMS:
        return "norm"
    if name in ("add", "sub", "rsub"):
        return "sum" if traced > 1 else "shift"
    if name in ("mul", "multiply", "div", "truediv", "true_divide", "divide", "neg"):
        return "gate" if traced > 1 else "scale"
    if "pool" in name or name in ("mean", "interpolate", "upsample"):
        return "pool"
    return "other"
