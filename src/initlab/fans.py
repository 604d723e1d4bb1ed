"""What a parameter is, how many connections its units have, and what it is called.

A *fan* counts connections: `fan_in` those that enter a unit of the output, `fan_out` those that leave a unit of the
input, in the interior of an image and on average where a stride makes units differ. torch and most libraries read fans
off the stored shape, which is wrong for transposed convolutions (stored input first), for grouped ones written as
one matrix, and for packed weights (q, k and v, or the gates of an LSTM, in one tensor). Here a parameter is a list of
*blocks*, each a matrix-like part with fans of its own and a view as (out, in, *receptive).

Two conventions. A strided convolution keeps `fan_out = out · k`, as He et al. 2015 and torch have it, although an
input unit feeds only 1/stride of those; a strided transposed convolution counts `fan_in = in · k / stride`, because
otherwise its output's variance would be wrong by the stride. An embedding looks one row up: `fan_in = 1`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

WEIGHT_KINDS = ("dense", "conv", "transposed_conv", "bilinear", "packed", "embedding")
"""Kinds of parameters that a scheme fills; the others have a rule of their own or are left alone."""


@dataclass(frozen=True)
class Fans:
    """Connections into and out of a unit, and the number of taps of the receptive field between them (1 if dense).

    >>> Fans(fan_in=27, fan_out=576, receptive=9)
    Fans(fan_in=27, fan_out=576, receptive=9)
    """

    fan_in: float
    fan_out: float
    receptive: int = 1


@dataclass(frozen=True)
class Block:
    """One matrix-like part of a stored tensor: `view(tensor)` shows it as `shape` = (out, in, *receptive).

    Attributes:
        fans: connections of this part's units.
        shape: canonical shape; of a bias (out,).
        rows: slice of the stored tensor's first dimension, or None for all of it.
        swapped: stored as (in, out, ...).
        label: "q", "k", "v", a gate, or "".
    """

    fans: Fans
    shape: tuple[int, ...]
    rows: slice | None = None
    swapped: bool = False
    label: str = ""

    def view(self, tensor: Tensor) -> Tensor:
        """Return the part of `tensor` (the parameter as stored) that this block is; it shares the memory."""
        part = tensor if self.rows is None else tensor[self.rows]
        return (part.transpose(0, 1) if self.swapped else part).view(self.shape)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module: its canonical name, its kind, its blocks, and the module that owns it.

    Attributes:
        name: canonical: wrappers' prefixes (`module.`, `_orig_mod.`) are stripped.
        kind: dense, conv, transposed_conv, bilinear, packed, embedding; bias, norm_scale, norm_shift, activation;
            parametrized, lazy, unknown.
        tensor: the parameter itself.
        owner: the module it belongs to.
        blocks: matrix-like parts of a weight; of a bias, its parts with the fans of the weights they go with.
        start: the constant that a norm scale, a norm shift or an activation's parameter starts from.
        aliases: canonical names of other places the same parameter stands at (tied weights).
    """

    name: str
    kind: str
    tensor: Tensor = field(repr=False)
    owner: nn.Module = field(repr=False)
    blocks: tuple[Block, ...] = field(default=(), repr=False)
    start: float = 0.0
    aliases: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        return tuple(self.tensor.shape)

    @property
    def layer(self) -> str:
        """Canonical name of the module that owns it: `hidden.0` of `hidden.0.weight`."""
        return self.name.rpartition(".")[0]

    @property
    def is_weight(self) -> bool:
        """Whether a scheme fills it."""
        return self.kind in WEIGHT_KINDS

    @property
    def fans(self) -> Fans | None:
        """Fans that all blocks share, else None."""
        if not self.blocks or any(block.fans != self.blocks[0].fans for block in self.blocks):
            return None
        return self.blocks[0].fans


Described = Mapping[str, tuple[str, tuple[Block, ...]]]


def walk(module: nn.Module) -> Iterator[Parameter]:
    """Yield every parameter of `module` once, tied ones under the first of their names, in order of registration.

    Args:
        module: any module; on the meta device too (nothing is read but shapes).

    >>> [(p.name, p.kind, p.fans) for p in walk(nn.Conv2d(4, 6, 3, groups=2, bias=False))]
    [('weight', 'conv', Fans(fan_in=18, fan_out=27, receptive=9))]
    """
    places: dict[int | tuple, list[tuple[str, Tensor, nn.Module, str]]] = {}
    names = canonical_names(module)
    for prefix, owner in module.named_modules():
        for own_name, tensor in owner._parameters.items():
            if tensor is not None:
                name = names[f"{prefix}.{own_name}" if prefix else own_name]
                places.setdefault(_identity(tensor), []).append((name, tensor, owner, own_name))
    # Modules reached by two paths are listed once by named_modules; their other names come from the full listing.
    others: dict[int | tuple, list[str]] = {}
    for full, tensor in module.named_parameters(remove_duplicate=False):
        others.setdefault(_identity(tensor), []).append(names[full])
    for key, found in places.items():
        name, tensor, owner, own_name = found[0]
        kind, blocks, start = _describe(owner, own_name, tensor)
        aliases = tuple(other for other in others[key] if other != name)
        yield Parameter(name, kind, tensor, owner, blocks, start, aliases)


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Return every parameter's full name with its canonical one: the same whether the module is wrapped or not.

    Prefixes of torch.compile, of data parallel and of checkpointing wrappers go; `module.` goes only where all
    parameters have it, so that two names never become one.

    >>> canonical_names(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)))
    {'1.weight': '1.weight', '1.bias': '1.bias'}
    """
    full = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    short = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in full]
    while short and all(name.startswith("module.") for name in short):
        short = [name.removeprefix("module.") for name in short]
    return dict(zip(full, short, strict=True))


_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _identity(tensor: Tensor) -> int | tuple:
    # Two Parameter objects over one storage are tied as well (`head.weight = nn.Parameter(table.weight.data)`).
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    try:
        return (tensor.device, tensor.data_ptr(), tensor.numel(), tensor.dtype)
    except RuntimeError:  # a tensor without storage of its own, such as a distributed one
        return id(tensor)


def _describe(owner: nn.Module, name: str, tensor: Tensor) -> tuple[str, tuple[Block, ...], float]:
    if is_lazy(tensor):
        return "lazy", (), 0.0
    if isinstance(owner, ParametrizationList):
        return "parametrized", (), 0.0
    if isinstance(owner, _NORMS):
        return ("norm_shift", (), 0.0) if name == "bias" else ("norm_scale", (), 1.0)
    if isinstance(owner, nn.PReLU):
        return "activation", (), float(owner.init)
    for kinds, describe in _DESCRIBERS:
        if isinstance(owner, kinds):
            described = describe(owner)
            if name in described:
                return described[name][0], described[name][1], 0.0
            # torch's older weight_norm and spectral_norm replace the weight by weight_g, weight_v or weight_orig.
            return ("parametrized" if name.startswith("weight_") else "unknown"), (), 0.0
    return "unknown", (), 0.0


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


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
