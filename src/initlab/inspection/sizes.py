"""The parameter shapes of torch's layers, by their sizes: a class is trusted only where its parameters have them.

A subclass may keep anything under the name `weight`: a vector, a stack of matrices, a transposed one. Its base class
then does not say what that is.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Sizes = Mapping[str, tuple[int, ...]]
SizeRule = Callable[[Any], Mapping[str, Any]]
"""Owner -> the shape of every parameter that its class may have."""

GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "RNN": ("h",)}
"""Gates of torch's recurrent layers in the order of their rows: input, forget, cell, output; reset, update, new."""

RECURRENT_WEIGHT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
"""Names of the weights of torch's recurrent layers and cells."""


def recurrent_type(owner: nn.Module) -> str:
    """Return LSTM, GRU or RNN of a recurrent layer or cell, or of a subclass of one; else "".

    >>> recurrent_type(nn.GRUCell(1, 1)), recurrent_type(nn.RNN(1, 1)), recurrent_type(nn.Linear(1, 1))
    ('GRU', 'RNN', '')
    """
    if not isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
        return ""
    bases = (base for base in type(owner).__mro__ if base.__module__ == nn.RNNBase.__module__)
    names = (base.__name__.removesuffix("Cell") for base in bases)
    return next((name for name in names if name in GATES), "")


def expected_shapes(owner: nn.Module, sizes: SizeRule) -> Sizes | None:
    """Return the parameter shapes that fit a layer's sizes; None where it lacks the attributes of its class."""
    try:
        shapes = {name: tuple(int(size) for size in shape) for name, shape in sizes(owner).items()}
    except (AttributeError, TypeError, ValueError, ZeroDivisionError, LookupError):  # a subclass with other attributes
        return None
    return shapes if all(size >= 0 for shape in shapes.values() for size in shape) else None


def linear_sizes(m: Any) -> dict[str, Any]:
    """Return the shapes of `nn.Linear`."""
    return {"weight": (m.out_features, m.in_features), "bias": (m.out_features,)}


def bilinear_sizes(m: Any) -> dict[str, Any]:
    """Return the shapes of `nn.Bilinear`."""
    return {"weight": (m.out_features, m.in1_features, m.in2_features), "bias": (m.out_features,)}


def conv_sizes(m: Any) -> dict[str, Any]:
    """Return the shapes of a convolution.

    Raises:
        ValueError: its groups or strides cannot be.
    """
    first, second = m.out_channels, m.in_channels
    if getattr(m, "transposed", False):
        first, second = second, first
    if first % m.groups or second % m.groups or any(step < 1 for step in m.stride):
        raise ValueError
    return {"weight": (first, second // m.groups, *m.kernel_size), "bias": (m.out_channels,)}


def embedding_sizes(m: Any) -> dict[str, Any]:
    """Return the shape of `nn.Embedding` and `nn.EmbeddingBag`."""
    return {"weight": (m.num_embeddings, m.embedding_dim)}


def attention_sizes(m: Any) -> dict[str, Any]:
    """Return the shapes of `nn.MultiheadAttention`."""
    size = m.embed_dim
    separate = {"q_proj_weight": (size, size), "k_proj_weight": (size, m.kdim), "v_proj_weight": (size, m.vdim)}
    packed = {"in_proj_weight": (3 * size, size), "in_proj_bias": (3 * size,)}
    return {**separate, **packed, "bias_k": (1, 1, size), "bias_v": (1, 1, size)}


def recurrent_sizes(m: Any) -> dict[str, Any]:
    """Return the shapes of torch's recurrent layers and cells."""
    rows, hidden = len(GATES[recurrent_type(m)]) * m.hidden_size, m.hidden_size
    if isinstance(m, nn.RNNCellBase):
        return {"weight_ih": (rows, m.input_size), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}
    out = m.proj_size or hidden
    shapes: dict[str, Any] = {}
    for layer in range(m.num_layers):
        inputs = m.input_size if layer == 0 else out * (2 if m.bidirectional else 1)
        weights = {"weight_ih": (rows, inputs), "weight_hh": (rows, out), "weight_hr": (out, hidden)}
        for end in (f"l{layer}", f"l{layer}_reverse"):
            shapes |= {f"{name}_{end}": shape for name, shape in weights.items()}
            shapes |= {f"bias_ih_{end}": (rows,), f"bias_hh_{end}": (rows,)}
    return shapes


def norm_sizes(size: Callable[[Any], Any]) -> SizeRule:
    """Return the rule of a norm whose scale and shift have the shape `size(norm)`."""
    return lambda m: {"weight": tuple(size(m)), "bias": tuple(size(m))}


def conv1d_sizes(m: Any) -> dict[str, Any]:
    """Return the shapes of `transformers.pytorch_utils.Conv1D`, which knows its outputs only."""
    return {"weight": (m.weight.shape[0], m.nf), "bias": (m.nf,)}
