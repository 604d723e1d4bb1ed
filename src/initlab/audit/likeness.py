"""What a parameter that breaks its promise looks like instead: torch's own default, other fans, a missing factor."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from initlab.activations import ACTIVATIONS
from initlab.audit.checks import CheckedBlock
from initlab.initialize import FillTask
from initlab.inspection import Block, Fans, Parameter
from initlab.schemes import SCHEMES, Law, laws
from initlab.schemes.law_checks import violations

MAX_ELEMENTS = 2**17
"""Elements that are looked at: any part of a sample of independent elements has their law."""

ALPHA = 1e-6

FACTORS = (
    (1 / math.sqrt(3), "the factor √3 is missing"),
    (math.sqrt(3), "a factor √3 too large"),
    (1 / math.sqrt(2), "a factor √2 is missing"),
    (math.sqrt(2), "a factor √2 too large"),
    (0.87962566103423978, "the variance lost by truncation is not corrected"),
)

LIKELY_SCHEMES = tuple(row for row in reversed(SCHEMES.values()) if row.common)  # the newest first


def describe_likeness(task: FillTask, parts: Sequence[CheckedBlock]) -> str:
    """Return what a broken parameter looks like, as words after "it looks like", or "" where nothing fits."""
    for group in parts:
        for words, law in _candidates(task, group):
            if _fits(group.values, law):
                return words
    return ""


def is_default(parameter: Parameter) -> bool:
    """Return whether a parameter follows the law that its own module gives it at construction.

    >>> from initlab.inspection import walk
    >>> is_default(next(walk(nn.Linear(100, 300))))
    True
    """
    law = default_law(parameter)
    if law is None or parameter.refusal:
        return False
    values = parameter.values()
    return not values.is_complex() and values.numel() > 1 and _fits(values, law)


def default_law(parameter: Parameter) -> Law | None:
    """Return the law that torch's own `reset_parameters` gives to a parameter, or None where there is none.

    >>> from initlab.inspection import walk
    >>> weight, bias = walk(nn.Linear(100, 3))
    >>> default_law(weight).support, default_law(bias).support
    ((-0.1, 0.1), (-0.1, 0.1))
    """
    owner, own = parameter.owner, parameter.name.rpartition(".")[2]
    if parameter.kind == "unknown":
        return None
    if isinstance(owner, nn.MultiheadAttention):
        return _attention_law(parameter, own)
    if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
        size = owner.hidden_size
        return _uniform_law(1 / math.sqrt(size)) if isinstance(size, int) and size > 0 else None
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return laws.normal(0, 1)
    if isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)) or type(owner).__name__ == "DeformConv2d":
        return _stored_fan_law(owner)
    return None


def _uniform_law(bound: float) -> Law:
    return laws.uniform(-bound, bound)


def _attention_law(parameter: Parameter, own: str) -> Law | None:
    if own == "in_proj_bias":
        return None
    rows, columns = parameter.shape[0], parameter.shape[-1]
    if own in ("bias_k", "bias_v"):
        return laws.normal(0, math.sqrt(2 / (columns + columns)))
    return _uniform_law(math.sqrt(6 / (rows + columns)))


def _stored_fan_law(owner: nn.Module) -> Law | None:
    # kaiming_uniform_(a=√5): 1/√fan with the fan read off the stored shape, for the bias too.
    weight = owner._parameters.get("weight")
    if weight is None or weight.numel() == 0 or weight.dim() < 2:
        return None
    fan = weight.shape[1] * (1 if isinstance(owner, nn.Bilinear) else math.prod(weight.shape[2:]))
    return _uniform_law(1 / math.sqrt(fan)) if fan else None


def _fits(values: Tensor, law: Law) -> bool:
    part = values.reshape(-1)[:MAX_ELEMENTS]
    if part.numel() < 2 and not law.deterministic:
        return False
    # A cheap look first: most candidates are far off.
    spread = 10 / math.sqrt(part.numel()) + 0.02
    rms = float(torch.linalg.vector_norm(part, dtype=torch.float64)) / math.sqrt(part.numel())
    promised = math.sqrt(law.variance + law.mean**2)
    return abs(rms - promised) <= spread * max(promised, 1e-30) and not violations(part, law, ALPHA)


def _candidates(task: FillTask, group: CheckedBlock) -> Iterator[tuple[str, Law]]:
    parameter, law = task.parameter, group.law
    default = default_law(parameter)
    if default is not None:
        name = type(parameter.owner).__name__
        yield f"the default of torch.nn.{name}, never touched", default
    if law.distribution != "constant":
        yield "zeros", laws.constant(0.0)
        yield "ones", laws.constant(1.0)
    if parameter.is_weight and task.scheme is not None and task.scheme.elementwise and not law.deterministic:
        yield from _other_fans(task, group)
    if law.cdf is not None and law.free is None:
        yield from _other_shapes(law)
        for factor, words in FACTORS:
            yield f"{law.distribution} of {factor:.3g} × the promised std: {words}", laws.scale_law(law, factor)
    if parameter.is_weight:
        yield from _catalogue(task, group)
    for std in (0.01, 0.02, 1.0):
        yield f"N(0, {std:g}²)", laws.normal(0, std)
    yield "U(0, 1)", laws.uniform(0, 1)


def _promised_block(task: FillTask, group: CheckedBlock) -> tuple[Block, float, str]:
    labels = [block.label or str(index) for index, block in enumerate(task.blocks)]
    index = labels.index(group.label) if group.label in labels else 0
    return task.blocks[index], task.gains[index], task.roles[index]


def _other_fans(task: FillTask, group: CheckedBlock) -> Iterator[tuple[str, Law]]:
    assert task.scheme is not None
    block, gain, role = _promised_block(task, group)
    for words, fans in _misread_fans(task.parameter, block):
        if fans != block.fans:
            yield f"{task.scheme.name} with {words}", task.scheme.law(fans, gain, role, block.shape)


def _misread_fans(parameter: Parameter, block: Block) -> Iterator[tuple[str, Fans]]:
    fans, parts = block.fans, len(parameter.blocks)
    yield "fan_out in place of fan_in", Fans(fans.fan_out, fans.fan_in, fans.receptive)
    if parts > 1:
        kind = "the packed projections taken as one matrix" if parameter.kind == "packed" else "the fans of all groups"
        yield kind, fans._replace(fan_out=fans.fan_out * parts)
        yield kind, fans._replace(fan_in=fans.fan_in * parts)
        yield kind, Fans(fans.fan_in * parts, fans.fan_out * parts, fans.receptive)
    if len(parameter.shape) > 1:
        taps = math.prod(parameter.shape[2:])
        stored = Fans(parameter.shape[1] * taps, parameter.shape[0] * taps, taps)
        yield "the fans that torch reads off the stored shape", stored
        yield (
            "the fans that torch reads off the stored shape, swapped",
            Fans(stored.fan_out, stored.fan_in, stored.receptive),
        )


def _other_shapes(law: Law) -> Iterator[tuple[str, Law]]:
    shapes = {
        "uniform": laws.uniform(law.mean - math.sqrt(3) * law.std, law.mean + math.sqrt(3) * law.std),
        "normal": laws.normal(law.mean, law.std),
        "truncated normal": _truncated(law),
    }
    for name, other in shapes.items():
        if name.replace(" ", "_") != law.distribution:
            yield f"a {name} law of the promised std in place of {law.distribution}", other


def _truncated(law: Law) -> Law:
    sigma = law.std / 0.87962566103423978
    return laws.truncated_normal(law.mean, sigma, law.mean - 2 * sigma, law.mean + 2 * sigma)


def _catalogue(task: FillTask, group: CheckedBlock) -> Iterator[tuple[str, Law]]:
    block, _, role = _promised_block(task, group)
    for row in LIKELY_SCHEMES:
        gain = row.gain(ACTIVATIONS["relu"], block.fans, role)
        modes = [(row.name, row)]
        if "mode" in row.parameters:
            modes.append((f"{row.name} with mode=fan_out", row.bind(mode="fan_out")))
        for name, each in modes:
            for words, fans in (("", block.fans), *_misread_fans(task.parameter, block)):
                yield name + (f" and {words}" if words else ""), each.law(fans, gain, role, block.shape)
