"""The kind and the blocks of each parameter of torch's layers: one row of a table for each family of layers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initlab.inspection import sizes
from initlab.inspection.foreign_kinds import kind_from_name
from initlab.inspection.parametrized import may_be_parametrized, parametrized_weights
from initlab.inspection.records import Block, Fans
from initlab.inspection.shapes import bias_blocks, dense_blocks, embedding_blocks, packed_bias_blocks, packed_blocks
from initlab.inspection.sizes import GATES, RECURRENT_WEIGHT, recurrent_type
from initlab.inspection.storage import storage_refusal
from initlab.inspection.torch_internals import ConvNd, RunningNorm, own_parameters

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Description: TypeAlias = tuple[str, tuple[Block, ...]] | tuple[str, tuple[Block, ...], float]
Reader: TypeAlias = Callable[[Any, Shapes, str], Mapping[str, Description]]
"""(owner, shapes of its parameters, what its parent calls it) -> {own name: (kind, blocks, start)}."""

NORMS = (RunningNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

QUANTIZED_TYPES = ("torchao.", "bitsandbytes.")
"""Packages whose tensor types look like floats and store codes."""

STACKED_QKV = ("qkv", "to_qkv", "in_proj", "c_attn", "wqkv", "qkv_proj")
"""Libraries' names for a dense layer that holds q, k and v one above the other (timm, torchvision, GPT-2)."""


class ParameterDescription(NamedTuple):
    """A parameter's kind, blocks, initial constant, and why it cannot be written.

    `mismatch`: why its shape contradicts its class, so that the kind is unknown.
    """

    kind: str
    blocks: tuple[Block, ...] = ()
    start: float = 0.0
    refusal: str = ""
    mismatch: str = ""


class LayerFamily(NamedTuple):
    """A row of `FAMILIES`: classes of torch's, or the name and attributes of a class whose library is not imported."""

    classes: Any
    sizes: sizes.SizeRule
    read: Reader
    attributes: tuple[str, ...] = ()

    def contains(self, owner: nn.Module) -> bool:
        """Return whether a module belongs to the family."""
        if not isinstance(self.classes, str):
            return isinstance(owner, self.classes)
        return type(owner).__name__ == self.classes and all(hasattr(owner, name) for name in self.attributes)


def describe_parameter(owner: nn.Module, name: str, tensor: Tensor, layer: str = "") -> ParameterDescription:
    """Describe a parameter or parametrized weight.

    Args:
        owner: the module that it belongs to.
        name: its own name there.
        tensor: its values; only shape, dtype and layout are read.
        layer: the owner's own name in its parent.
    """
    if is_lazy(tensor):
        return _refused("lazy", "it is lazy and has no shape yet: pass one batch through the module first")
    if type(tensor).__name__ == "FlatParameter":
        remedy = "initialize the module before it is wrapped, or shard it with fully_shard"
        return _refused("flattened", f"it is several parameters flattened into one: {remedy}")
    if (unusual := storage_refusal(tensor)) is not None:
        return _refused(*unusual)
    description = _describe_by_class(owner, name, tensor, layer)
    if _is_quantized(tensor, known=description.kind != "unknown" or bool(description.mismatch)):
        dtype = str(tensor.dtype).removeprefix("torch.")
        remedy = "initialize the module before it is quantized"
        return _refused("quantized", f"it is quantized ({dtype}), codes without a law: {remedy}")
    return description


def _refused(kind: str, refusal: str) -> ParameterDescription:
    return ParameterDescription(kind, refusal=refusal)


def _describe_by_class(owner: nn.Module, name: str, tensor: Tensor, layer: str) -> ParameterDescription:
    family = _find_family(owner)
    if family is None:
        return ParameterDescription(*(kind_from_name(owner, name, tensor) or ("unknown",)))
    shapes = _shapes(owner)
    mismatches = _mismatches(owner, family, shapes)
    if name not in mismatches:
        trusted = {own: shape for own, shape in shapes.items() if own not in mismatches}
        if description := family.read(owner, trusted, layer).get(name):
            return ParameterDescription(*description)
    # A bias whose weight has another shape has no fans either.
    mismatch = mismatches.get(name) or next(iter(mismatches.values()), "")
    return ParameterDescription("unknown", mismatch=mismatch)


def shape_mismatches(owner: nn.Module, shapes: Shapes) -> dict[str, str]:
    """Return why parameters of these shapes contradict the class of `owner`; {} where all agree.

    >>> shape_mismatches(nn.Linear(2, 3), {"weight": (4, 3, 2), "bias": (3,)})
    {'weight': 'Linear has a weight of shape 3x2 for its sizes, and this one is 4x3x2'}
    """
    family = _find_family(owner)
    return {} if family is None else _mismatches(owner, family, shapes)


def _find_family(owner: nn.Module) -> LayerFamily | None:
    for family in FAMILIES:
        if family.contains(owner):
            return family
    return None


def _mismatches(owner: nn.Module, family: LayerFamily, shapes: Shapes) -> dict[str, str]:
    expected, name = sizes.expected_shapes(owner, family.sizes), type(owner).__name__
    if expected is None:
        return dict.fromkeys(shapes, f"{name} lacks the sizes that torch's own class has")
    mismatches = {}
    for own, shape in shapes.items():
        if own in expected and tuple(shape) != expected[own]:
            wanted, actual = ("x".join(map(str, size)) or "()" for size in (expected[own], shape))
            mismatches[own] = f"{name} has a {own} of shape {wanted} for its sizes, and this one is {actual}"
    return mismatches


def _is_quantized(tensor: Tensor, known: bool) -> bool:
    dtype = tensor.dtype
    if tensor.is_quantized or type(tensor).__module__.startswith(QUANTIZED_TYPES):
        return True
    if dtype.is_floating_point:
        return dtype.itemsize == 1
    return known and not dtype.is_complex


def _shapes(owner: nn.Module) -> dict[str, torch.Size]:
    stored = own_parameters(owner).items()
    shapes = {name: t.shape for name, t in stored if t is not None and not (is_lazy(t) or t.is_nested)}
    if may_be_parametrized(owner):
        shapes |= {name: example.shape for name, _, example, _ in parametrized_weights(owner)}
    return shapes


def _weight_and_bias(kind: str, blocks: tuple[Block, ...], out: int) -> dict[str, Description]:
    biases = packed_bias_blocks(blocks) if kind == "packed" else bias_blocks(blocks[0].fans, (out,))
    return {"weight": (kind, blocks), "bias": ("bias", biases)}


def _dense(owner: Any, shapes: Shapes, layer: str, swapped: bool = False) -> dict[str, Description]:
    if "weight" not in shapes:
        return {}
    out, inputs = reversed(shapes["weight"]) if swapped else shapes["weight"]
    if layer.lower() in STACKED_QKV and out == 3 * inputs:
        return _weight_and_bias("packed", packed_blocks(shapes["weight"], swapped=swapped), out)
    return _weight_and_bias("dense", dense_blocks(shapes["weight"], swapped), out)


def _conv1d(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    # transformers.pytorch_utils.Conv1D: a dense layer that stores (in, out).
    return _dense(owner, shapes, layer, swapped=True)


def _bilinear(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    if "weight" not in shapes:
        return {}
    # A dense layer over the products x₁ᵢ·x₂ⱼ.
    out, first, second = shapes["weight"]
    return _weight_and_bias("bilinear", dense_blocks((out, first * second)), out)


def _conv(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    if "weight" not in shapes:
        return {}
    stored, groups, swapped = shapes["weight"], owner.groups, bool(getattr(owner, "transposed", False))
    taps = math.prod(stored[2:])
    rows, columns = stored[0] // groups, stored[1]
    out, inputs = (columns, rows) if swapped else (rows, columns)
    fan_in = inputs * taps / math.prod(owner.stride) if swapped else inputs * taps
    fans = Fans(int(fan_in) if fan_in == int(fan_in) else fan_in, out * taps, taps)
    parts = [slice(g * rows, (g + 1) * rows) for g in range(groups)] if groups > 1 else [None]
    blocks = tuple(Block(fans, (out, inputs, *stored[2:]), part, swapped) for part in parts)
    return _weight_and_bias("transposed_conv" if swapped else "conv", blocks, out * groups)


def _embedding(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    return {"weight": ("embedding", embedding_blocks(shapes["weight"]))} if "weight" in shapes else {}


def _attention(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    family: dict[str, Description] = {}
    if "in_proj_weight" in shapes:
        blocks = packed_blocks(shapes["in_proj_weight"])
        family = {"in_proj_weight": ("packed", blocks), "in_proj_bias": ("bias", packed_bias_blocks(blocks))}
    elif all(f"{label}_proj_weight" in shapes for label in "qkv"):
        blocks = tuple(dense_blocks(shapes[f"{label}_proj_weight"])[0]._replace(label=label) for label in "qkv")
        family = {f"{block.label}_proj_weight": ("dense", (block,)) for block in blocks}
        family["in_proj_bias"] = ("bias", packed_bias_blocks(blocks))
    for name in {"bias_k", "bias_v"} & shapes.keys():
        family[name] = ("bias", bias_blocks(Fans(1, shapes[name][-1]), shapes[name]))
    return family


def _recurrent(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    family: dict[str, Description] = {}
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


def _norm(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    kinds: dict[str, Description] = {"weight": ("norm_scale", (), 1.0), "bias": ("norm_shift", ())}
    return {name: kinds[name] for name in kinds if name in shapes}


def _prelu(owner: Any, shapes: Shapes, layer: str) -> dict[str, Description]:
    return {"weight": ("activation", (), float(getattr(owner, "init", 0.25)))} if "weight" in shapes else {}


FAMILIES = (
    LayerFamily(nn.Linear, sizes.linear_sizes, _dense),
    LayerFamily(ConvNd, sizes.conv_sizes, _conv),
    LayerFamily(RunningNorm, sizes.norm_sizes(lambda m: (m.num_features,)), _norm),
    LayerFamily(nn.GroupNorm, sizes.norm_sizes(lambda m: (m.num_channels,)), _norm),
    LayerFamily((nn.LayerNorm, nn.RMSNorm), sizes.norm_sizes(lambda m: m.normalized_shape), _norm),
    LayerFamily(nn.PReLU, lambda m: {"weight": (m.num_parameters,)}, _prelu),
    LayerFamily("DeformConv2d", sizes.conv_sizes, _conv, ("groups", "stride", "weight")),
    LayerFamily(nn.Bilinear, sizes.bilinear_sizes, _bilinear),
    LayerFamily((nn.Embedding, nn.EmbeddingBag), sizes.embedding_sizes, _embedding),
    LayerFamily(nn.MultiheadAttention, sizes.attention_sizes, _attention),
    LayerFamily((nn.RNNBase, nn.RNNCellBase), sizes.recurrent_sizes, _recurrent),
    LayerFamily("Conv1D", sizes.conv1d_sizes, _conv1d, ("nf", "weight")),
)
"""The layers whose parameters initlab knows. The first row that contains a module counts."""
