"""What each of torch's layers keeps in its parameters, and the blocks it is made of: one function per family."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from .records import Block, Fans

Described = Mapping[str, tuple[str, tuple[Block, ...]]]


def describe(owner: nn.Module, name: str, tensor: Tensor) -> tuple[str, tuple[Block, ...], float]:
    """Return kind, blocks and constant start of the parameter that `owner` calls `name`."""
    if is_lazy(tensor):
        return "lazy", (), 0.0
    if isinstance(owner, ParametrizationList):
        return "parametrized", (), 0.0
    if isinstance(owner, NORMS):
        return ("norm_shift", (), 0.0) if name == "bias" else ("norm_scale", (), 1.0)
    if isinstance(owner, nn.PReLU):
        return "activation", (), float(owner.init)
    for kinds, family in _DESCRIBERS:
        if isinstance(owner, kinds):
            described = family(owner)
            if name in described:
                return described[name][0], described[name][1], 0.0
            # torch's older weight_norm and spectral_norm replace the weight by weight_g, weight_v or weight_orig.
            return ("parametrized" if name.startswith("weight_") else "unknown"), (), 0.0
    return "unknown", (), 0.0


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def _sizes(owner: nn.Module) -> dict[str, torch.Size]:
    # Through `_parameters`: the attribute of a parametrized weight would compute it.
    return {name: tensor.shape for name, tensor in owner._parameters.items() if tensor is not None}


def _whole_number(value: float) -> float:
    return int(value) if value == int(value) else value


def _dense(owner: nn.Module) -> Described:
    described: dict[str, tuple[str, tuple[Block, ...]]] = {}
    sizes = _sizes(owner)
    if "weight" not in sizes:
        return described
    out, inputs = sizes["weight"]
    fans = Fans(inputs, out)
    described["weight"] = ("dense", (Block(fans, (out, inputs)),))
    if "bias" in sizes:
        described["bias"] = ("bias", (Block(fans, tuple(sizes["bias"])),))
    return described


def _bilinear(owner: nn.Module) -> Described:
    sizes = _sizes(owner)
    if "weight" not in sizes:
        return {}
    # A dense layer over the products x₁ᵢ·x₂ⱼ.
    out, first, second = sizes["weight"]
    fans = Fans(first * second, out)
    return {
        "weight": ("bilinear", (Block(fans, (out, first * second)),)),
        "bias": ("bias", (Block(fans, (out,)),)),
    }


def _conv(owner: nn.Module) -> Described:
    assert isinstance(owner, nn.modules.conv._ConvNd)
    sizes = _sizes(owner)
    if "weight" not in sizes:
        return {}
    stored, groups, swapped = sizes["weight"], owner.groups, owner.transposed
    taps = math.prod(stored[2:])
    rows, columns = stored[0] // groups, stored[1]
    out, inputs = (columns, rows) if swapped else (rows, columns)
    reach = taps / math.prod(owner.stride) if swapped else taps
    fans = Fans(_whole_number(inputs * reach), out * taps, taps)
    shape = (out, inputs, *stored[2:])
    parts = [slice(g * rows, (g + 1) * rows) for g in range(groups)] if groups > 1 else [None]
    blocks = tuple(Block(fans, shape, part, swapped) for part in parts)
    kind = "transposed_conv" if swapped else "conv"
    return {"weight": (kind, blocks), "bias": ("bias", (Block(fans, (out * groups,)),))}


def _embedding(owner: nn.Module) -> Described:
    sizes = _sizes(owner)
    if "weight" not in sizes:
        return {}
    rows, size = sizes["weight"]
    return {"weight": ("embedding", (Block(Fans(1, size), (size, rows), swapped=True),))}


def _packed(shape: torch.Size, labels: tuple[str, ...]) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    # Row blocks of a stored (labels · out, in) weight, and of the bias that goes with it.
    out, inputs = shape[0] // len(labels), shape[1]
    fans = Fans(inputs, out)
    parts = [slice(i * out, (i + 1) * out) for i in range(len(labels))]
    weight = tuple(Block(fans, (out, inputs), rows, label=label) for rows, label in zip(parts, labels, strict=True))
    bias = tuple(Block(fans, (out,), rows, label=label) for rows, label in zip(parts, labels, strict=True))
    return weight, bias


def _attention(owner: nn.Module) -> Described:
    sizes = _sizes(owner)
    described: dict[str, tuple[str, tuple[Block, ...]]] = {}
    if "in_proj_weight" in sizes:
        weight, bias = _packed(sizes["in_proj_weight"], ("q", "k", "v"))
        described = {"in_proj_weight": ("packed", weight), "in_proj_bias": ("bias", bias)}
    elif "q_proj_weight" in sizes:
        biases = []
        for index, label in enumerate("qkv"):
            out, inputs = sizes[f"{label}_proj_weight"]
            fans = Fans(inputs, out)
            described[f"{label}_proj_weight"] = ("dense", (Block(fans, (out, inputs), label=label),))
            biases.append(Block(fans, (out,), slice(index * out, (index + 1) * out), label=label))
        described["in_proj_bias"] = ("bias", tuple(biases))
    for name in ("bias_k", "bias_v"):
        if name in sizes:
            described[name] = ("bias", (Block(Fans(1, sizes[name][-1]), tuple(sizes[name])),))
    return described


_GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "RNN": ("h",)}


def _recurrent(owner: nn.Module) -> Described:
    sizes = _sizes(owner)
    family = getattr(owner, "mode", type(owner).__name__).partition("_")[0].removesuffix("Cell")
    described: dict[str, tuple[str, tuple[Block, ...]]] = {}
    for name, shape in sizes.items():
        if name.startswith("weight_hr"):
            described[name] = ("dense", (Block(Fans(shape[1], shape[0]), tuple(shape)),))
        elif name.startswith("weight_"):
            weight, bias = _packed(shape, _GATES[family])
            described[name] = ("packed", weight)
            described[name.replace("weight", "bias")] = ("bias", bias)
    return described


_DESCRIBERS: tuple[tuple[type | tuple[type, ...], Callable[[nn.Module], Described]], ...] = (
    (nn.Linear, _dense),
    (nn.modules.conv._ConvNd, _conv),
    (nn.Bilinear, _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.MultiheadAttention, _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
)
