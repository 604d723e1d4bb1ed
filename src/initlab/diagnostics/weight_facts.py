"""Facts about one weight that verdicts need: how large its elements are, whether they are constant, copied, default."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from initlab.diagnostics.weights import Weight
from initlab.schemes import SCHEMES
from initlab.schemes.law_checks import violations
from initlab.schemes.laws import uniform

MIN_ELEMENTS, MAX_TESTED = 64, 20_000
"""Elements below which a law cannot be told, and above which a sample of them is tested."""


@dataclass(frozen=True)
class WeightFacts:
    """What one weight and its bias hold, taken when the diagnosis was made.

    Attributes:
        kind, parameter: as in `fans`; fan_in, fan_out: where all its blocks share them, else NaN.
        groups: number of blocks that see inputs of their own; units: rows of each.
        square, mean: E[w²] and E[w] over its elements; constant: all are equal; finite: none is NaN or infinite.
        default: consistent with torch's own U(±1/√fan_in).
        key: equal for equal values of equal shape; tied: see `Weight`; part: `q`, `k` or `v` of a packed weight.
        bias_mean: mean of the bias, 0 without one.
        twins: layers with the same values in tensors of their own.
        patterned: made by a scheme that draws nothing, such as an identity; looked at where units or layers are copies.
    """

    parameter: str
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
    part: str = ""
    twins: tuple[str, ...] = ()
    patterned: bool = False


def read_weight_facts(weight: Weight, copies: bool = False) -> WeightFacts:
    """Take the facts of a weight, `copies` telling whether some of its units are.

    >>> from initlab.diagnostics.weights import weights_of
    >>> facts = read_weight_facts(weights_of(nn.Linear(64, 64))[0])
    >>> facts.default, facts.constant, facts.fan_in
    (True, False, 64)
    """
    part = weight.part(weight.tensor.detach())
    fans = weight.fans
    bias = weight.bias
    square = float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 / max(part.numel(), 1)
    labels = [block.label for block in weight.blocks]
    return WeightFacts(
        parameter=weight.name,
        kind=weight.kind,
        shape=tuple(part.shape),
        fan_in=fans.fan_in if fans else float("nan"),
        fan_out=fans.fan_out if fans else float("nan"),
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
        part=labels[0] if len(labels) == 1 else "",
        patterned=copies and is_deterministic_pattern(weight),
    )


def has_default_values(weight: Weight) -> bool:
    """Whether a weight looks drawn by torch's own rule for its kind: variance and distribution agree.

    U(±1/√n), n the fan_in (the hidden size of a recurrent layer); for attention U(±√(6/(rows + columns))).

    A weight that was drawn so passes but once in a million; one with another variance fails as soon as a few hundred
    elements tell it. Too few elements: False.
    """
    bound = _default_bound(weight)
    part = weight.part(weight.tensor.detach())
    if bound is None or part.numel() < MIN_ELEMENTS:
        return False
    values = part.flatten()
    spread = float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2 / values.numel() / (bound**2 / 3)
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
    if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
        return owner.hidden_size**-0.5
    if weight.kind == "bilinear":
        return shape[1] ** -0.5
    if isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) and weight.kind in ("dense", "conv", "transposed_conv"):
        return shape[1:].numel() ** -0.5  # torch takes a transposed convolution's fan off the stored shape too
    return None


def _values_hash(part: Tensor) -> str:
    raw = part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{list(part.shape)}{hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def with_identical_layers(weights: Sequence[Weight], found: Sequence[WeightFacts]) -> list[WeightFacts]:
    """Note in each weight's facts which others hold the same values, where that cannot be what a scheme made them.

    Constants do, and so do schemes that draw nothing (an identity, a sinusoid): these have no twins.

    >>> from initlab.diagnostics.weights import weights_of
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> net[1].load_state_dict(net[0].state_dict()) and None
    >>> weights = weights_of(net)
    >>> with_identical_layers(weights, [read_weight_facts(w) for w in weights])[0].twins
    ('1',)
    """
    groups: dict[str, list[int]] = {}
    for i, facts in enumerate(found):
        if not facts.constant and not facts.tied and facts.elements >= 4:
            groups.setdefault(facts.key, []).append(i)
    result = list(found)
    for members in groups.values():
        if len(members) > 1 and not found[members[0]].patterned and not is_deterministic_pattern(weights[members[0]]):
            for i in members:
                result[i] = replace(found[i], twins=tuple(weights[j].layer for j in members if j != i))
    return result


def is_deterministic_pattern(weight: Weight) -> bool:
    """Whether a scheme that draws nothing made these values: equal ones are then no accident."""
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
