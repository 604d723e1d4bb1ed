"""Facts about one weight that rules need: the size of its elements, whether they are constant, copied or default."""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from initlab.diagnostics.weights import CONVOLUTIONS, RECURRENT, Weight
from initlab.schemes import SCHEMES
from initlab.schemes.law_checks import violations
from initlab.schemes.laws import uniform

MIN_ELEMENTS, MAX_TESTED = 64, 20_000
"""Elements below which a law is not tested, and above which a sample of them is."""


@dataclass(frozen=True)
class WeightFacts:
    """What one weight and its bias hold when the diagnosis is made.

    Attributes:
        kind: as in `Weight`.
        shape: shape of the layer's part of the weight.
        fan_in: where all blocks share it, else NaN.
        fan_out: where all blocks share it, else NaN.
        groups: number of blocks that have inputs of their own.
        units: rows of each block.
        elements: number of elements.
        square: E[w²] over the elements.
        mean: E[w] over the elements.
        constant: all elements are equal.
        finite: no element is NaN or infinite.
        default: consistent with torch's own U(±1/√fan_in).
        key: a hash of shape and values.
        tied: as in `Weight`.
        bias_mean: mean of the bias, 0 without one.
        part: `q`, `k` or `v` of a packed weight, else "".
        patterned: made by a scheme that draws nothing, such as an identity; computed where units are copies.
        twins: layers that hold the same values in tensors of their own, this one among them.
    """

    kind: str
    shape: tuple[int, ...]
    fan_in: float
    fan_out: float
    groups: int
    units: int
    elements: int
    square: float
    mean: float
    constant: bool
    finite: bool
    default: bool
    key: str
    tied: str
    bias_mean: float
    part: str
    patterned: bool
    twins: tuple[str, ...] = ()


def read_weight_facts(weight: Weight, copies: bool = False) -> WeightFacts:
    """Return the facts of a weight.

    Args:
        weight: the weight.
        copies: whether some of its units are copies of others.

    >>> from initlab.diagnostics.weights import weights_of
    >>> facts = read_weight_facts(weights_of(nn.Linear(64, 64))[0])
    >>> facts.default, facts.constant, facts.fan_in
    (True, False, 64)
    """
    part = weight.part(weight.tensor.detach())
    fans, bias = weight.fans, weight.bias
    square = _square_sum(part) / max(part.numel(), 1)
    return WeightFacts(
        kind=weight.kind,
        shape=tuple(part.shape),
        fan_in=fans.fan_in if fans else math.nan,
        fan_out=fans.fan_out if fans else math.nan,
        groups=max(len(weight.blocks), 1),
        units=weight.blocks[0].shape[0] if weight.blocks else part.shape[0],
        elements=part.numel(),
        square=square,
        mean=float(part.mean(dtype=torch.float64)),
        constant=bool((part == part.flatten()[0]).all()) if part.numel() else True,
        finite=math.isfinite(square),
        default=has_default_values(weight),
        key=_values_hash(part),
        tied=weight.tied,
        bias_mean=float(bias.detach().double().mean()) if bias is not None and bias.numel() else 0.0,
        part=weight.blocks[0].label if len(weight.blocks) == 1 else "",
        patterned=copies and is_deterministic_pattern(weight),
    )


def _square_sum(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def has_default_values(weight: Weight) -> bool:
    """Return whether variance and distribution of a weight agree with torch's own rule for its kind.

    U(±1/√n), n the fan_in (the hidden size of a recurrent layer); for attention U(±√(6/(rows + columns))). A weight
    drawn by the rule is rejected once in a million; one with another variance is rejected from a few hundred elements
    on. False below `MIN_ELEMENTS`.
    """
    bound = _default_bound(weight)
    part = weight.part(weight.tensor.detach())
    if bound is None or part.numel() < MIN_ELEMENTS:
        return False
    values = part.flatten()
    spread = _square_sum(values) / values.numel() / (bound**2 / 3)
    if not abs(spread - 1) <= 6 * (0.8 / values.numel()) ** 0.5 + 1e-6:  # Var of u² is 0.8 of its squared mean
        return False
    step = -(-values.numel() // MAX_TESTED)
    return not violations(values[::step], uniform(-bound, bound), alpha=1e-6)


def _default_bound(weight: Weight) -> float | None:
    owner, shape = weight.owner, weight.tensor.shape
    if weight.kind == "unknown":
        return None
    if isinstance(owner, nn.MultiheadAttention):
        return (6 / (shape[0] + shape[1])) ** 0.5  # of the stored tensor, q, k and v together
    if isinstance(owner, RECURRENT):
        return owner.hidden_size**-0.5
    if weight.kind == "bilinear":
        return shape[1] ** -0.5
    if isinstance(owner, (nn.Linear, *CONVOLUTIONS)) and weight.kind in ("dense", "conv", "transposed_conv"):
        return shape[1:].numel() ** -0.5  # torch reads the fan of a transposed convolution from the stored shape too
    return None


def _values_hash(part: Tensor) -> str:
    raw = part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{list(part.shape)}{hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def is_deterministic_pattern(weight: Weight) -> bool:
    """Return whether a scheme that draws nothing made these values, so that equal ones are meant."""
    x = weight.part(weight.tensor.detach()).double().cpu()
    if len(x.unique()) <= 3:
        return True
    if len(weight.blocks) != 1 or not bool(torch.isfinite(x).all()):
        return False
    block = weight.blocks[0]
    values = block.view(weight.tensor.detach()).double().cpu()
    fitting = (s for s in SCHEMES.values() if s.block_refusal(weight.kind, block.shape) is None)
    laws = (s.law(block.fans, 1.0, "hidden", block.shape) for s in fitting)
    return any(law.deterministic and law.defect is not None and law.defect(values) < 1e-5 for law in laws)
