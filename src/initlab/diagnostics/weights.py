"""The weights of a module as diagnostics use them: one record per weight of a layer, with the layer's bias."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.inspection import Block, Fans, Parameter, walk
from initlab.inspection.parameters import plain_name
from initlab.inspection.parametrized import check_weight_norms

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
LAYER_TYPES = (
    nn.Linear,
    *CONVOLUTIONS,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    *RECURRENT,
    nn.MultiheadAttention,
)
"""Modules whose output is a preactivation; other owners of weights are recorded where they call a linear function."""


@dataclass(frozen=True)
class Weight:
    """One weight of a layer.

    Attributes:
        name: name of the parameter.
        layer: name of the layer in rows (`encoder.self_attn.q` for a part of a packed weight).
        kind: as in `inspection`: dense, conv, transposed_conv, bilinear, packed, embedding, parametrized, unknown.
        tensor: the parameter.
        owner: the module that holds it.
        blocks: matrix-like parts with fans; empty where their orientation is unknown.
        bias: the bias of the layer, or of its part of a packed weight.
        tied: name under which the same tensor is listed first, or "".
    """

    name: str
    layer: str
    kind: str
    tensor: Tensor = field(repr=False)
    owner: nn.Module = field(repr=False)
    blocks: tuple[Block, ...] = field(default=(), repr=False)
    bias: Tensor | None = field(default=None, repr=False)
    tied: str = ""

    @property
    def fans(self) -> Fans | None:
        """Fans that all blocks share, else None."""
        return self.blocks[0].fans if len({block.fans for block in self.blocks}) == 1 else None

    @property
    def is_projection(self) -> bool:
        """Whether it is the q, k or v of an attention."""
        return len(self.blocks) == 1 and self.blocks[0].label in ("q", "k", "v")

    def part(self, tensor: Tensor) -> Tensor:
        """Return the rows of the stored tensor (or of its gradient) that belong to this layer."""
        rows = self.blocks[0].rows if len(self.blocks) == 1 else None
        return tensor if rows is None else tensor[rows]

    def matrix(self) -> Tensor:
        """Return the blocks as float64 [G, out, in]: convolutions flattened, gates of a recurrent layer one matrix."""
        values = self.tensor.detach()
        if not self.blocks or (self.kind == "packed" and len(self.blocks) > 1):
            return values.reshape(1, values.shape[0], -1).double()
        return self._rows()

    def units(self) -> Tensor:
        """Return the weights of each unit, its bias a further column: [G, out, in + 1], groups and gates apart."""
        rows = self._rows()
        if self.bias is None or self.bias.numel() != rows.shape[0] * rows.shape[1]:
            return rows
        bias = self.bias.detach().double().reshape(rows.shape[0], rows.shape[1], 1)
        return torch.cat([rows, bias], dim=2)

    def _rows(self) -> Tensor:
        values = self.tensor.detach()
        blocks = [block.view(values) for block in self.blocks] if self.blocks else [values]
        rows = [block.reshape(block.shape[0], -1) for block in blocks]
        return (rows[0][None] if len(rows) == 1 else torch.stack(rows)).double()


def weights_of(module: nn.Module) -> list[Weight]:
    """List the weights of a module in order of registration.

    Raises:
        UserError: a parameter is lazy or on the meta device, or there are none.

    >>> [weight.layer for weight in weights_of(nn.MultiheadAttention(4, 2))]
    ['q', 'k', 'v', 'out_proj']
    """
    check_weight_norms(module)
    parameters = list(walk(module))
    if not parameters:
        raise UserError(f"{type(module).__name__} has no parameters, so that there is nothing to diagnose.")
    for p in parameters:
        if p.kind == "lazy":
            raise UserError(f"{p.name} is lazy and has no shape yet: pass one batch through the module first.")
        if p.kind in ("sparse", "expanded"):
            raise UserError(f"{p.name} cannot be diagnosed: {p.refusal}.")
        if p.tensor.is_meta:
            raise UserError(f"{p.name} is on the meta device and has no values: call to_empty and initialize it first.")
    owners = {plain_name(name): owner for name, owner in module.named_modules()}
    weights: list[Weight] = []
    for p in parameters:
        if p.parametrization is None and p.tensor.is_floating_point():
            weights += _weights_of_parameter(p, parameters)
            for alias in p.aliases:
                weights += _tied_weights(p, alias, owners.get(alias.rpartition(".")[0]))
    return [*weights, *_parametrized_weights(module)]


def _weights_of_parameter(p: Parameter, siblings: Iterable[Parameter]) -> list[Weight]:
    if not p.tensor.numel():
        return []
    if p.kind == "unknown" and p.tensor.dim() >= 2:
        return [Weight(p.name, p.name, "unknown", p.tensor, p.owner)]
    if not p.is_weight:
        return []
    prefix, _, own = p.name.rpartition(".")
    attention = isinstance(p.owner, nn.MultiheadAttention)
    wanted = "in_proj_bias" if attention else own.replace("weight", "bias")
    bias = next((b for b in siblings if b.owner is p.owner and b.name.rpartition(".")[2] == wanted), None)
    weight = Weight(p.name, prefix, p.kind, p.tensor, p.owner, p.blocks, bias.tensor if bias else None)
    if isinstance(p.owner, RECURRENT):
        return [replace(weight, layer=p.name)]
    if not attention:
        return [weight]
    biases = {block.label: bias.tensor[block.rows] for block in bias.blocks if block.rows} if bias else {}
    layers = {f"{prefix}.{block.label}" if prefix else block.label: block for block in p.blocks}
    return [
        replace(weight, layer=layer, blocks=(block,), bias=biases.get(block.label)) for layer, block in layers.items()
    ]


def _tied_weights(parameter: Parameter, alias: str, owner: nn.Module | None) -> Iterator[Weight]:
    # The same tensor in another layer (a head that reuses the embedding): other fans, another place in the signal.
    if owner is None or owner is parameter.owner or not isinstance(owner, LAYER_TYPES):
        return
    prefix, _, name = alias.rpartition(".")
    own = [p for p in walk(owner) if p.owner is owner]
    for weight in (w for p in own if p.name == name for w in _weights_of_parameter(p, own)):
        layer = ".".join(filter(None, (prefix, weight.layer)))
        yield replace(weight, name=alias, layer=layer, tied=parameter.name)


def _parametrized_weights(module: nn.Module) -> Iterator[Weight]:
    # weight_norm, spectral_norm and other parametrizations: the weight is not a parameter but a function of some.
    for name, owner in module.named_modules():
        if isinstance(owner, LAYER_TYPES) and "weight" not in dict(owner.named_parameters(recurse=False)):
            value = getattr(owner, "weight", None)
            if isinstance(value, Tensor) and value.dim() >= 2 and value.is_floating_point():
                plain = plain_name(name)
                yield Weight(f"{plain}.weight", plain, "parametrized", value, owner)
