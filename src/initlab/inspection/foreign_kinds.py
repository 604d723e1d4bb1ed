"""Parameters of modules that torch does not have, recognized by their names: tokens, tables, scales."""

import math
import re

from torch import Tensor, nn

from initlab.inspection.records import Block
from initlab.inspection.shapes import table_blocks

_PATTERNS = {
    "relative_position": r"rel(ative)?_?pos(ition)?(al)?(_?\w+)?",
    "position": r"((abs(olute)?|spatial|temporal|class|image|text)_)?pos(ition)?(al)?(_?(emb|enc|table|token)\w*)?",
    "token": r"((cls|class|dist|mask|reg(ister)?|query|sep|latent|prompt|meta|storage)_?(tokens?|query|queries))",
}
_TABLES = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _PATTERNS.items()}
_LAYER_SCALE = re.compile(
    r"(layer_?scale(_\w+)?|ls_?\d*(_gamma)?|gamma_\d+|lambda_\d+|res_?scale(_\w+)?)", re.IGNORECASE
)
_START_ATTRIBUTES = ("init_values", "init_value", "layer_scale_init_value", "init_scale")

LAYER_SCALE = 1e-6
"""Initial value of a LayerScale whose module shows none: Liu et al. 2022, A ConvNet for the 2020s."""


def kind_from_name(owner: nn.Module, name: str, tensor: Tensor) -> tuple[str, tuple[Block, ...], float] | None:
    """Return kind, blocks and initial constant of a parameter of an unknown module by its name, or None.

    >>> import torch
    >>> kind_from_name(nn.Module(), "class_token", torch.zeros(1, 1, 4))[0]
    'token'
    """
    if type(owner).__name__ == "ShiftedWindowAttentionV2" and name == "logit_scale":
        return "temperature", (), math.log(10)  # Liu et al. 2022, Swin Transformer V2: τ = 1/10
    if type(owner).__name__.lower().endswith(("layerscale", "layerscale2d")) or _LAYER_SCALE.fullmatch(name):
        return "layer_scale", (), _layer_scale(owner, tensor)
    kind = next((kind for kind, pattern in _TABLES.items() if tensor.dim() and pattern.fullmatch(name)), None)
    return None if kind is None else (kind, table_blocks(tensor.shape), 0.0)


def _layer_scale(owner: nn.Module, tensor: Tensor) -> float:
    for attribute in _START_ATTRIBUTES:
        value = getattr(owner, attribute, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    if tensor.is_meta or tensor.numel() == 0 or not tensor.dtype.is_floating_point or hasattr(tensor, "full_tensor"):
        return LAYER_SCALE
    # A scale whose elements are all equal is as its module made it.
    first = float(tensor.detach().reshape(-1)[0])
    same = math.isfinite(first) and first != 0 and bool((tensor.detach() == first).all())
    return first if same else LAYER_SCALE
