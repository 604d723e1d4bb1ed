"""What a torch function does to a signal, read off its name: which activation it is, or which kind of step.

A module (`nn.GELU()`) and a function (`F.gelu(x)`, `x.relu_()`) call the same few torch functions, so that one table
serves models that have modules for their activations and models that have none.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from initlab.activations import ACTIVATIONS, Activation

CallArguments = tuple[tuple[Any, ...], Mapping[str, Any]]


def function_name(function: Any) -> str:
    """Return a torch function's name without the underscore of its in-place form.

    >>> import torch
    >>> function_name(torch.relu_), function_name(torch.Tensor.__add__)
    ('relu', 'add')
    """
    name = getattr(function, "__name__", "")
    if name.startswith("__") and name.endswith("__"):
        inner = name.strip("_")
        return inner if inner in ("get", "getitem") else inner.removeprefix("r").removeprefix("i")
    return name.strip("_")


def called_activation(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """Return the record of the activation that a call applies, with its parameters bound; None if it is none known.

    >>> called_activation("leaky_relu", (None, 0.2), {}).parameters
    {'negative_slope': 0.2}
    >>> called_activation("clamp", (None,), {"min": 0}).name
    'relu'
    """
    find = _RECORDS.get(name)
    return find((args, kwargs)) if find is not None else None


def _argument(call: CallArguments, position: int, name: str, default: Any) -> Any:
    args, kwargs = call
    return args[position] if len(args) > position else kwargs.get(name, default)


def _fixed(name: str) -> Callable[[CallArguments], Activation]:
    return lambda call: ACTIVATIONS[name]


def _with_parameter(name: str, key: str) -> Callable[[CallArguments], Activation | None]:
    def find(call: CallArguments) -> Activation | None:
        value = _argument(call, 1, key, ACTIVATIONS[name].parameters[key])
        if isinstance(value, Tensor):
            value = float(value.detach().double().mean())
        return ACTIVATIONS[name].bind(**{key: float(value)})

    return find


def _prelu(call: CallArguments) -> Activation:
    weight = _argument(call, 1, "weight", None)
    return ACTIVATIONS["prelu"].bind(negative_slope=float(weight.detach().double().mean()))


def _gelu(call: CallArguments) -> Activation:
    return ACTIVATIONS["gelu_tanh" if _argument(call, 1, "approximate", "none") == "tanh" else "gelu"]


def _clamp(call: CallArguments) -> Activation | None:
    bounds = (_argument(call, 1, "min", None), _argument(call, 2, "max", None))
    return _CLAMPS.get(bounds) if not any(isinstance(b, Tensor) for b in bounds) else None


def _hardtanh(call: CallArguments) -> Activation | None:
    return _CLAMPS.get((_argument(call, 1, "min_val", -1.0), _argument(call, 2, "max_val", 1.0)))


def _threshold(call: CallArguments) -> Activation | None:
    bounds = (_argument(call, 1, "threshold", None), _argument(call, 2, "value", None))
    return ACTIVATIONS["relu"] if bounds == (0, 0) else None


_CLAMPS = {
    (0, None): ACTIVATIONS["relu"],
    (0, 6): ACTIVATIONS["relu6"],
    (-1, 1): ACTIVATIONS["hardtanh"],
}

_RECORDS: dict[str, Callable[[CallArguments], Activation | None]] = {
    **{
        name: _fixed(name)
        for name in ("relu", "relu6", "selu", "silu", "mish", "hardswish", "hardsigmoid", "tanh", "sigmoid", "softsign")
    },
    "erf": _fixed("erf"),
    "atan": _fixed("arctan"),
    "arctan": _fixed("arctan"),
    "expit": _fixed("sigmoid"),
    "sin": lambda call: ACTIVATIONS["sin"].bind(omega=1.0),  # a factor inside the sine is part of its argument
    "leaky_relu": _with_parameter("leaky_relu", "negative_slope"),
    "elu": _with_parameter("elu", "alpha"),
    "celu": _with_parameter("celu", "alpha"),
    "softplus": _with_parameter("softplus", "beta"),
    "prelu": _prelu,
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
}

NONLINEAR = {"logsigmoid", "tanhshrink", "softshrink", "hardshrink", "glu", "rrelu", "square", "cos", "exp"}
"""Elementwise functions that initlab has no record of: an activation, but an unknown one."""

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
    """Return the word for what a function does to `traced` signals, or None where it moves values about unchanged.

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
