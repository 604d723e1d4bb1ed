"""What each of torch's layers keeps in its parameters, and the blocks it is made of: one function per family."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initlab.inspection.foreign_kinds import kind_from_name
from initlab.inspection.parametrized import may_be_parametrized, parametrized_weights
from initlab.inspection.records import Block, Fans
from initlab.inspection.shapes import bias_blocks, dense_blocks, embedding_blocks, packed_bias_blocks, packed_blocks
from initlab.inspection.sizes import GATES, RECURRENT_WEIGHT, recurrent_type, shape_mismatches
from initlab.inspection.storage import storage_refusal

Shapes = Mapping[str, torch.Size]
Family = Mapping[str, tuple[str, tuple[Block, ...]] | tuple[str, tuple[Block, ...], float]]


class ParameterDescription(NamedTuple):
    """What `owner` keeps under a name: kind, blocks, the constant it starts from, why it cannot be written.

    `doubt`: why its class is not believed, so that the kind is unknown.
    """

    kind: str
    blocks: tuple[Block, ...] = ()
    start: float = 0.0
    refusal: str = ""
    doubt: str = ""


def describe_parameter(owner: nn.Module, name: str, tensor: Tensor, called: str = "") -> ParameterDescription:
    """Return what the parameter (or held weight) that `owner`, itself `called` so by its parent, calls `name` is."""
    if is_lazy(tensor):
        return ParameterDescription(
            "lazy", refusal="it is lazy and has no shape yet: pass one batch through the module first"
        )
    if type(tensor).__name__ == "FlatParameter":
        remedy = "initialize the module before it is wrapped, or shard it with fully_shard"
        return ParameterDescription("flattened", refusal=f"it is several parameters flattened into one: {remedy}")
    if (unusual := storage_refusal(tensor)) is not None:
        return ParameterDescription(unusual[0], refusal=unusual[1])
    found = _describe_by_class(owner, name, tensor, called)
    if _is_quantized(tensor, "doubted" if found.doubt else found.kind):
        remedy = "initialize the module before it is quantized"
        return ParameterDescription(
            "quantized", refusal=f"it is quantized ({_dtype_name(tensor)}), codes without a law: {remedy}"
        )
    return found


def _describe_by_class(owner: nn.Module, name: str, tensor: Tensor, called: str) -> ParameterDescription:
    for known, family in _FAMILIES:
        if known(owner):
            return _describe_by_family(owner, name, family, called)
    named = kind_from_name(owner, name, tensor)
    return ParameterDescription("unknown") if named is None else ParameterDescription(*named)


def _describe_by_family(owner: nn.Module, name: str, family: "_Reader", called: str) -> ParameterDescription:
    shapes = _shapes(owner)
    doubted = shape_mismatches(owner, shapes)
    if name in doubted:
        return ParameterDescription("unknown", doubt=doubted[name])
    found = family(owner, {own: shape for own, shape in shapes.items() if own not in doubted}, called).get(name)
    if found is not None:
        return ParameterDescription(*found)
    # A bias whose weight is doubted has no fans either.
    return ParameterDescription("unknown", doubt=next(iter(doubted.values()), ""))


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

QUANTIZED_TYPES = ("torchao.", "bitsandbytes.")
"""Homes of tensor types that look like floats and store codes."""


def _is_quantized(tensor: Tensor, kind: str) -> bool:
    dtype = tensor.dtype
    if tensor.is_quantized or type(tensor).__module__.startswith(QUANTIZED_TYPES):
        return True
    codes = not dtype.is_floating_point and not dtype.is_complex
    return (dtype.itemsize == 1 and dtype.is_floating_point) or (codes and kind != "unknown")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shapes(owner: nn.Module) -> dict[str, torch.Size]:
    # Through `_parameters`: the attribute of a parametrized weight would compute it.
    plain = {name: t for name, t in owner._parameters.items() if t is not None and not (is_lazy(t) or t.is_nested)}
    shapes = {name: tensor.shape for name, tensor in plain.items()}
    if may_be_parametrized(owner):
        shapes |= {name: example.shape for name, _, example, _ in parametrized_weights(owner)}
    return shapes


def _int_if_whole(value: float) -> float:
    return int(value) if value == int(value) else value


STACKED_QKV = ("qkv", "to_qkv", "in_proj", "c_attn", "wqkv", "qkv_proj")
"""What libraries call a dense layer that holds q, k and v one above the other (timm, torchvision, GPT-2)."""


def _dense(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    return _matrix(shapes, called)


def _conv1d(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    # transformers.pytorch_utils.Conv1D: a dense layer that stores (in, out).
    return _matrix(shapes, called, swapped=True)


def _matrix(shapes: Shapes, called: str, swapped: bool = False) -> Family:
    if "weight" not in shapes:
        return {}
    out, inputs = reversed(shapes["weight"]) if swapped else shapes["weight"]
    if called.lower() in STACKED_QKV and out == 3 * inputs:
        blocks = packed_blocks(shapes["weight"], swapped=swapped)
        return {"weight": ("packed", blocks), "bias": ("bias", packed_bias_blocks(blocks))}
    blocks = dense_blocks(shapes["weight"], swapped)
    return {"weight": ("dense", blocks), "bias": ("bias", bias_blocks(blocks[0].fans, (out,)))}


def _bilinear(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    if "weight" not in shapes:
        return {}
    # A dense layer over the products x₁ᵢ·x₂ⱼ.
    out, first, second = shapes["weight"]
    blocks = dense_blocks((out, first * second))
    return {"weight": ("bilinear", blocks), "bias": ("bias", bias_blocks(blocks[0].fans, (out,)))}


def _conv(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    if "weight" not in shapes:
        return {}
    groups: int = owner.groups  # type: ignore[assignment]
    stored, swapped = shapes["weight"], bool(getattr(owner, "transposed", False))
    taps = math.prod(stored[2:])
    rows, columns = stored[0] // groups, stored[1]
    out, inputs = (columns, rows) if swapped else (rows, columns)
    reach = taps / math.prod(owner.stride) if swapped else taps  # type: ignore[arg-type]
    fans = Fans(_int_if_whole(inputs * reach), out * taps, taps)
    shape = (out, inputs, *stored[2:])
    parts = [slice(g * rows, (g + 1) * rows) for g in range(groups)] if groups > 1 else [None]
    blocks = tuple(Block(fans, shape, part, swapped) for part in parts)
    kind = "transposed_conv" if swapped else "conv"
    return {"weight": (kind, blocks), "bias": ("bias", bias_blocks(fans, (out * groups,)))}


def _embedding(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    return {"weight": ("embedding", embedding_blocks(shapes["weight"]))} if "weight" in shapes else {}


def _attention(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    family: dict[str, tuple[str, tuple[Block, ...]]] = {}
    if "in_proj_weight" in shapes:
        blocks = packed_blocks(shapes["in_proj_weight"])
        family = {"in_proj_weight": ("packed", blocks), "in_proj_bias": ("bias", packed_bias_blocks(blocks))}
    elif all(f"{label}_proj_weight" in shapes for label in "qkv"):
        parts = [(label, dense_blocks(shapes[f"{label}_proj_weight"])[0]) for label in "qkv"]
        blocks = tuple(block._replace(label=label) for label, block in parts)
        family = {f"{block.label}_proj_weight": ("dense", (block,)) for block in blocks}
        family["in_proj_bias"] = ("bias", packed_bias_blocks(blocks))
    for name in ("bias_k", "bias_v"):
        if name in shapes:
            family[name] = ("bias", bias_blocks(Fans(1, shapes[name][-1]), shapes[name]))
    return family


def _recurrent(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    family: dict[str, tuple[str, tuple[Block, ...]]] = {}
    for name, shape in shapes.items():
        if not RECURRENT_WEIGHT.fullmatch(name):
            continue
        if name.startswith("weight_hr"):
            family[name] = ("dense", dense_blocks(shape))
        else:
            blocks = packed_blocks(shape, GATES[recurrent_type(owner)])
            family[name] = ("packed", blocks)
            family[name.replace("weight", "bias")] = ("bias", packed_bias_blocks(blocks))
    return family


def _is_instance(*types: type) -> Callable[[nn.Module], bool]:
    return lambda owner: isinstance(owner, types)


def _has_class_name(name: str, *needs: str) -> Callable[[nn.Module], bool]:
    # A layer of a library that is not imported for it.
    return lambda owner: type(owner).__name__ == name and all(hasattr(owner, need) for need in needs)


def _norm(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    kinds: Family = {"weight": ("norm_scale", (), 1.0), "bias": ("norm_shift", ())}
    return {name: described for name, described in kinds.items() if name in shapes}


def _prelu(owner: nn.Module, shapes: Shapes, called: str) -> Family:
    start = getattr(owner, "init", 0.25)
    return {"weight": ("activation", (), float(start))} if "weight" in shapes else {}


_Reader: TypeAlias = Callable[[nn.Module, Shapes, str], Family]

_FAMILIES: tuple[tuple[Callable[[nn.Module], bool], _Reader], ...] = (
    (_is_instance(*NORMS), _norm),
    (_is_instance(nn.PReLU), _prelu),
    (_is_instance(nn.Linear), _dense),
    (_is_instance(nn.modules.conv._ConvNd), _conv),
    (_has_class_name("DeformConv2d", "groups", "stride"), _conv),
    (_is_instance(nn.Bilinear), _bilinear),
    (_is_instance(nn.Embedding, nn.EmbeddingBag), _embedding),
    (_is_instance(nn.MultiheadAttention), _attention),
    (_is_instance(nn.RNNBase, nn.RNNCellBase), _recurrent),
    (_has_class_name("Conv1D", "nf"), _conv1d),
)
