"""Parameters that are known by what they are called, in modules that torch does not have: tokens, tables, scales."""

import math
import re

from torch import Tensor, nn

from initlab.inspection.records import Block
from initlab.inspection.shapes import table_blocks

_PATTERNS: tuple[tuple[str, str], ...] = (
    ("relative_position", r"rel(ative)?_?pos(ition)?(al)?(_?\w+)?"),
    ("position", r"((abs(olute)?|spatial|temporal|class|image|text)_)?pos(ition)?(al)?(_?(emb|enc|table|token)\w*)?"),
    ("token", r"((cls|class|dist|mask|reg(ister)?|query|sep|latent|prompt|meta|storage)_?(tokens?|query|queries))"),
    ("layer_scale", r"(layer_?scale(_\w+)?|ls_?\d*(_gamma)?|gamma_\d+|lambda_\d+|res_?scale(_\w+)?)"),
)
_NAMES = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _PATTERNS)
_START_ATTRIBUTES = ("init_values", "init_value", "layer_scale_init_value", "init_scale")

LAYER_SCALE = 1e-6
"""Start of a LayerScale that shows none: Liu et al. 2022, A ConvNet for the 2020s."""


def kind_from_name(owner: nn.Module, name: str, tensor: Tensor) -> tuple[str, tuple[Block, ...], float] | None:
    """Return kind, blocks and start of a parameter of an unknown module that its name gives away, or None.

    >>> import torch
    >>> kind_from_name(nn.Module(), "class_token", torch.zeros(1, 1, 4))[0]
    'token'
    """
    if type(owner).__name__ == "ShiftedWindowAttentionV2" and name == "logit_scale":
        return "temperature", (), math.log(10)  # Liu et al. 2022, Swin Transformer V2: τ = 1/10
    if type(owner).__name__.lower().endswith(("layerscale", "layerscale2d")) or _name_matches("layer_scale", name):
        return "layer_scale", (), _layer_scale(owner, tensor)
    for kind, _ in _NAMES:
        if kind != "layer_scale" and tensor.dim() >= 1 and _name_matches(kind, name):
            return kind, table_blocks(tensor.shape), 0.0
    return None


def _name_matches(kind: str, name: str) -> bool:
    return any(known == kind and pattern.fullmatch(name) is not None for known, pattern in _NAMES)


def _layer_scale(owner: nn.Module, tensor: Tensor) -> float:
    for attribute in _START_ATTRIBUTES:
        value = getattr(owner, attribute, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    if tensor.is_meta or tensor.numel() == 0 or not tensor.dtype.is_floating_point or hasattr(tensor, "full_tensor"):
        return LAYER_SCALE
    # A scale that has one value is as its module made it: that value is its start.
    first = float(tensor.detach().reshape(-1)[0])
    same = math.isfinite(first) and first != 0 and bool((tensor.detach() == first).all())
    return first if same else LAYER_SCALE
