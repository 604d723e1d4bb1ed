"""What a broken parameter looks like: torch's own default, a law of other fans, a law without a factor."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from initlab.activations import ACTIVATIONS
from initlab.audit.checks import CheckedBlock
from initlab.initialize import FillTask
from initlab.inspection import Block, Fans, Parameter
from initlab.inspection.torch_internals import ConvNd, own_parameters
from initlab.schemes import SCHEMES, Law, laws
from initlab.schemes.law_checks import violations
from initlab.schemes.scaling import TRUNCATED_STD

MAX_ELEMENTS = 2**17
"""Elements that are tested: any part of a sample of independent elements has their law."""

ALPHA = 1e-6

FACTORS = (
    (1 / math.sqrt(3), "the factor √3 is missing"),
    (math.sqrt(3), "a factor √3 too large"),
    (1 / math.sqrt(2), "a factor √2 is missing"),
    (math.sqrt(2), "a factor √2 too large"),
    (TRUNCATED_STD, "the variance lost by truncation is not corrected"),
)

LIKELY_SCHEMES = tuple(row for row in reversed(SCHEMES.values()) if row.common)  # the newest first


def describe_likeness(task: FillTask, blocks: Sequence[CheckedBlock]) -> str:
    """Return what a broken parameter looks like, to follow "it looks like", or "" where no candidate fits.

    Args:
        task: the promise.
        blocks: the parameter's blocks.
    """
    for group in blocks:
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
    if parameter.kind == "unknown" or own == "in_proj_bias":
        return None
    if isinstance(owner, nn.MultiheadAttention):
        rows, columns = parameter.shape[0], parameter.shape[-1]
        if own in ("bias_k", "bias_v"):
            return laws.normal(0, math.sqrt(1 / columns))
        return _uniform_law(math.sqrt(6 / (rows + columns)))
    if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
        size = owner.hidden_size
        return _uniform_law(1 / math.sqrt(size)) if isinstance(size, int) and size > 0 else None
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return laws.normal(0, 1)
    if isinstance(owner, (nn.Linear, ConvNd, nn.Bilinear)) or type(owner).__name__ == "DeformConv2d":
        # kaiming_uniform_(a=√5): 1/√fan with the fan read off the stored shape, for the bias too.
        weight = own_parameters(owner).get("weight")
        if weight is not None and weight.dim() >= 2 and weight.numel():
            taps = 1 if isinstance(owner, nn.Bilinear) else math.prod(weight.shape[2:])
            return _uniform_law(1 / math.sqrt(weight.shape[1] * taps))
    return None


def _uniform_law(bound: float) -> Law:
    return laws.uniform(-bound, bound)


def _fits(values: Tensor, law: Law) -> bool:
    part = values.reshape(-1)[:MAX_ELEMENTS]
    if part.numel() < 2 and not law.deterministic:
        return False
    # A cheap test first: most candidates are far off.
    spread = 10 / math.sqrt(part.numel()) + 0.02
    rms = float(torch.linalg.vector_norm(part, dtype=torch.float64)) / math.sqrt(part.numel())
    promised = math.sqrt(law.variance + law.mean**2)
    return abs(rms - promised) <= spread * max(promised, 1e-30) and not violations(part, law, ALPHA)


def _candidates(task: FillTask, group: CheckedBlock) -> Iterator[tuple[str, Law]]:
    parameter, law, scheme = task.parameter, group.law, task.scheme
    default = default_law(parameter)
    if default is not None:
        yield f"the default of torch.nn.{type(parameter.owner).__name__}, never touched", default
    if law.distribution != "constant":
        yield "zeros", laws.constant(0.0)
        yield "ones", laws.constant(1.0)
    if parameter.is_weight and scheme is not None and scheme.elementwise and not law.deterministic:
        block, gain, role = _promised_block(task, group)
        for words, fans in _misread_fans(parameter, block):
            if fans != block.fans:
                yield f"{scheme.name} with {words}", scheme.law(fans, gain, role, block.shape)
    if law.cdf is not None and law.free is None:
        yield from _other_distributions(law)
        for factor, words in FACTORS:
            yield f"{law.distribution} of {factor:.3g} × the promised std: {words}", laws.scale_law(law, factor)
    if parameter.is_weight:
        yield from _likely_schemes(task, group)
    for std in (0.01, 0.02, 1.0):
        yield f"N(0, {std:g}²)", laws.normal(0, std)
    yield "U(0, 1)", laws.uniform(0, 1)


def _promised_block(task: FillTask, group: CheckedBlock) -> tuple[Block, float, str]:
    labels = [block.label or str(index) for index, block in enumerate(task.blocks)]
    index = labels.index(group.label) if group.label in labels else 0
    return task.blocks[index], task.gains[index], task.roles[index]


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
        out, inputs = parameter.shape[0] * taps, parameter.shape[1] * taps
        yield "the fans that torch reads off the stored shape", Fans(inputs, out, taps)
        yield "the fans that torch reads off the stored shape, swapped", Fans(out, inputs, taps)


def _other_distributions(law: Law) -> Iterator[tuple[str, Law]]:
    half, sigma = math.sqrt(3) * law.std, law.std / TRUNCATED_STD
    others = {
        "uniform": laws.uniform(law.mean - half, law.mean + half),
        "normal": laws.normal(law.mean, law.std),
        "truncated normal": laws.truncated_normal(law.mean, sigma, law.mean - 2 * sigma, law.mean + 2 * sigma),
    }
    for name, other in others.items():
        if name.replace(" ", "_") != law.distribution:
            yield f"a {name} law of the promised std in place of {law.distribution}", other


def _likely_schemes(task: FillTask, group: CheckedBlock) -> Iterator[tuple[str, Law]]:
    block, _, role = _promised_block(task, group)
    for row in LIKELY_SCHEMES:
        candidates = {row.name: row}
        if "mode" in row.parameters:
            candidates[f"{row.name} with mode=fan_out"] = row.bind(mode="fan_out")
        gain = row.gain(ACTIVATIONS["relu"], block.fans, role)
        for label, candidate in candidates.items():
            for words, fans in (("", block.fans), *_misread_fans(task.parameter, block)):
                yield label + (f" and {words}" if words else ""), candidate.law(fans, gain, role, block.shape)
