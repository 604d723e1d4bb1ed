"""The shapes that torch's layers give to their parameters: a class is believed only where the shapes agree.

A subclass may keep anything under the name `weight`: a vector, a stack of matrices, a transposed one. What its parent
would do with it says nothing then.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Sizes = dict[str, tuple[int, ...]]

GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "RNN": ("h",)}
"""Gates of torch's recurrent layers in the order of their rows: input, forget, cell, output; reset, update, new."""


def recurrent_type(owner: nn.Module) -> str:
    """Return LSTM, GRU or RNN of a recurrent layer or cell, or of a subclass of one; "" where it is none.

    >>> recurrent_type(nn.GRUCell(1, 1)), recurrent_type(nn.RNN(1, 1)), recurrent_type(nn.Linear(1, 1))
    ('GRU', 'RNN', '')
    """
    if not isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
        return ""
    names = (base.__name__.removesuffix("Cell") for base in type(owner).__mro__ if base.__module__ == RECURRENT_MODULE)
    return next((name for name in names if name in GATES), "")


RECURRENT_MODULE = nn.RNNBase.__module__


def shape_mismatches(owner: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return why parameters of these shapes are not what the class of `owner` says they are; {} where all agree.

    >>> shape_mismatches(nn.Linear(2, 3), {"weight": (4, 3, 2), "bias": (3,)})
    {'weight': 'Linear has a weight of shape 3x2 for its sizes, and this one is 4x3x2'}
    """
    wanted = _expected_shapes(owner)
    name = type(owner).__name__
    if wanted is None:
        return dict.fromkeys(shapes, f"{name} lacks the sizes that torch's own class has")
    found = {}
    for own, shape in shapes.items():
        if own in wanted and tuple(shape) != wanted[own]:
            said = ["x".join(map(str, sizes)) or "()" for sizes in (wanted[own], shape)]
            found[own] = f"{name} has a {own} of shape {said[0]} for its sizes, and this one is {said[1]}"
    return found


def _expected_shapes(owner: Any) -> Sizes | None:
    """Return the shapes that fit the sizes of a torch layer, {} for other modules; None where it has no sizes."""
    sizes = next((sizes for known, sizes in _SIZES if isinstance(owner, known)), None)
    if sizes is None and type(owner).__name__ in _SIZES_BY_CLASS_NAME and hasattr(owner, "weight"):
        sizes = _SIZES_BY_CLASS_NAME[type(owner).__name__]
    if sizes is None:
        return {}
    try:
        found = {name: tuple(int(size) for size in shape) for name, shape in sizes(owner).items()}
    except (AttributeError, TypeError, ValueError, ZeroDivisionError, LookupError):  # a subclass with other attributes
        return None
    return found if all(size >= 0 for shape in found.values() for size in shape) else None


def _linear(m: Any) -> dict[str, Any]:
    return {"weight": (m.out_features, m.in_features), "bias": (m.out_features,)}


def _bilinear(m: Any) -> dict[str, Any]:
    return {"weight": (m.out_features, m.in1_features, m.in2_features), "bias": (m.out_features,)}


def _conv(m: Any) -> dict[str, Any]:
    first, second = (
        (m.in_channels, m.out_channels) if getattr(m, "transposed", False) else (m.out_channels, m.in_channels)
    )
    if first % m.groups or second % m.groups or any(step < 1 for step in m.stride):
        raise ValueError
    return {"weight": (first, second // m.groups, *m.kernel_size), "bias": (m.out_channels,)}


def _embedding(m: Any) -> dict[str, Any]:
    return {"weight": (m.num_embeddings, m.embedding_dim)}


def _attention(m: Any) -> dict[str, Any]:
    size = m.embed_dim
    keys = {"q_proj_weight": (size, size), "k_proj_weight": (size, m.kdim), "v_proj_weight": (size, m.vdim)}
    packed = {"in_proj_weight": (3 * size, size), "in_proj_bias": (3 * size,)}
    return {**keys, **packed, "bias_k": (1, 1, size), "bias_v": (1, 1, size)}


def _recurrent(m: Any) -> dict[str, Any]:
    rows, hidden = len(GATES[recurrent_type(m)]) * m.hidden_size, m.hidden_size
    if isinstance(m, nn.RNNCellBase):
        return {"weight_ih": (rows, m.input_size), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}
    out = m.proj_size or hidden
    found: dict[str, Any] = {}
    for layer in range(m.num_layers):
        inputs = m.input_size if layer == 0 else out * (2 if m.bidirectional else 1)
        for end in (f"l{layer}", f"l{layer}_reverse"):
            found |= {
                f"weight_ih_{end}": (rows, inputs),
                f"weight_hh_{end}": (rows, out),
                f"weight_hr_{end}": (out, hidden),
            }
            found |= {f"bias_ih_{end}": (rows,), f"bias_hh_{end}": (rows,)}
    return found


def _norm(size: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda m: {"weight": tuple(size(m)), "bias": tuple(size(m))}


def _conv1d(m: Any) -> dict[str, Any]:
    return {"weight": (m.weight.shape[0], m.nf), "bias": (m.nf,)}


_SIZES: tuple[tuple[Any, Callable[[Any], dict[str, Any]]], ...] = (
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _conv),
    (nn.Bilinear, _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.MultiheadAttention, _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.modules.batchnorm._NormBase, _norm(lambda m: (m.num_features,))),
    (nn.GroupNorm, _norm(lambda m: (m.num_channels,))),
    ((nn.LayerNorm, nn.RMSNorm), _norm(lambda m: m.normalized_shape)),
    (nn.PReLU, lambda m: {"weight": (m.num_parameters,)}),
)
_SIZES_BY_CLASS_NAME: dict[str, Callable[[Any], dict[str, Any]]] = {"DeformConv2d": _conv, "Conv1D": _conv1d}

RECURRENT_WEIGHT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
"""What torch calls the weights of a recurrent layer or cell."""
