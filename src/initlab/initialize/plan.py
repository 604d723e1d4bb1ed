"""What `initialize_` would do to each parameter, decided and checked before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from initlab.errors import Impossible, UserError
from initlab.initialize.from_theory import autoinit_gains
from initlab.initialize.gate_biases import KEEP_GATES, gate_laws, is_gate_bias
from initlab.initialize.request import (
    DERIVED_GAINS,
    GlobRule,
    Request,
    Roles,
    Spec,
    assign_rules,
    request,
    require_module,
)
from initlab.initialize.roles import declared_layers
from initlab.inspection import TABLE_KINDS, Block, NamedModule, Parameter, list_modules, list_parameters, table_blocks
from initlab.models.layers import WeightLayer
from initlab.schemes import SCHEMES, Law, Scheme, laws

__all__ = ["DERIVED_GAINS", "FillPlan", "FillTask", "Request", "Roles", "Spec", "plan", "request", "scheme_refusal"]

GAINLESS_ROLES = ("first", "readout")
"""Roles whose layers get gain 1 where the gain is derived."""

TABLE_SCHEME = SCHEMES["normal"].bind(std=0.02)
"""Tokens and tables that are added to a signal: Devlin et al. 2019 (BERT), Dosovitskiy et al. 2021 (ViT), Liu et al.
2021 (Swin)."""


NO_GATES: Mapping[str, Law] = MappingProxyType({})


class FillTask(NamedTuple):
    """What happens to one parameter.

    Attributes:
        parameter: the parameter.
        rule: scheme, bias (by the scheme's rule), normal (sigma_b), constant; left (nothing is known of it), unmatched
            (no rule means it), skipped (`only` or `skip`), refused (it cannot be written; `parameter.refusal`).
        scheme: the scheme that fills it or sets its bias.
        role: its layer's.
        roles, gains: one per block; q, k and v have roles of their own.
        sigma_b: std of a bias with rule normal.
        glob: the rule that decided.
        gates: laws of the gates in a bias whose values an option sets.
        blocks: parts that the scheme fills.
    """

    parameter: Parameter
    rule: str
    scheme: Scheme | None = None
    role: str = ""
    roles: tuple[str, ...] = ()
    gains: tuple[float, ...] = ()
    sigma_b: float = 0.0
    glob: str = ""
    gates: Mapping[str, Law] = NO_GATES
    blocks: tuple[Block, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether the parameter gets new values."""
        return self.rule in ("scheme", "bias", "normal", "constant")

    def promised(self) -> list[Law]:
        """Return the law of each block (one for all where there are no blocks); [] where nothing is promised."""
        if self.rule == "constant":
            found = [laws.constant(self.parameter.start)]
        elif self.rule == "normal":
            found = [laws.normal(0.0, self.sigma_b)]
        elif self.rule == "bias" and self.scheme is not None:
            found = [law for block in self.blocks if (law := self.scheme.bias_law(block.fans)) is not None]
        elif self.rule == "scheme" and self.scheme is not None:
            found = self._by_scheme(self.scheme)
        else:
            return []
        if self.gates:
            found = found * len(self.blocks) if len(found) == 1 else found
            found = [self.gates.get(block.label, law) for block, law in zip(self.blocks, found, strict=True)]
        return found

    def _by_scheme(self, scheme: Scheme) -> list[Law]:
        # Hundreds of groups may share one law.
        law = cache(scheme.law) if len(self.blocks) > 1 else scheme.law
        return [
            law(block.fans, gain, role, filled_shape(self.parameter, block))
            for block, gain, role in zip(self.blocks, self.gains, self.roles, strict=True)
        ]


def padding_row(parameter: Parameter) -> int | None:
    """Return the row of an embedding that stays zero, or None.

    >>> from initlab.inspection import walk
    >>> padding_row(next(walk(nn.Embedding(5, 2, padding_idx=-1))))
    4
    """
    found = getattr(parameter.owner, "padding_idx", None) if parameter.kind == "embedding" else None
    return None if found is None else int(found) % parameter.shape[0]


def filled_shape(parameter: Parameter, block: Block) -> tuple[int, ...]:
    """Return the shape of what a scheme fills of a block: all of it but an embedding's padding.

    >>> from initlab.inspection import walk
    >>> table = next(walk(nn.Embedding(5, 2, padding_idx=0)))
    >>> filled_shape(table, table.blocks[0])
    (2, 4)
    """
    return block.shape if padding_row(parameter) is None else (block.shape[0], block.shape[1] - 1)


class FillPlan(list[FillTask]):
    """One task per parameter.

    Attributes:
        several: for parameters that more than one rule matches, the globs in order.
        parts: the module's modules and their names.
    """

    several: dict[str, list[str]]
    parts: list[NamedModule]


def plan(module: nn.Module, wanted: Request, refuse: bool = True) -> FillPlan:
    """Return one task per parameter; `module` may be on the meta device, nothing is written.

    Args:
        module: any module.
        wanted: what to do.
        refuse: raise at the first parameter that cannot be written; else it gets the rule "refused".

    Raises:
        Impossible: the scheme cannot fill some weight of this module; the message names the first.
        UserError: a parameter that cannot be written as it is (lazy, spectral_norm, …), or a glob without a match.
    """
    require_module(module)
    parts = list_modules(module)
    for name, part in parts:
        if type(part).__module__.startswith(QUANTIZED_MODULES) and refuse and wanted.means(f"{name}.weight"):
            raise UserError(f"{name or 'the module'} is quantized: initialize the module before it is quantized.")
    parameters = list_parameters(parts, wanted.kinds)
    rules, several = assign_rules(parameters, wanted)
    schemes = {name: rule.scheme for name, rule in rules.items()}
    layers = declared_layers(module, parameters, wanted, schemes)
    if any(scheme.derived == "moments" for scheme in schemes.values()):
        wanted = replace(wanted, flows=autoinit_gains(module, parameters, layers, wanted.act))
    found = FillPlan(_plan_parameter(p, rules.get(p.name), layers.get(p.layer), wanted, refuse) for p in parameters)
    found.several, found.parts = several, parts
    _check_convolutions(found)
    _check_gates(found, wanted)
    return found


QUANTIZED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def scheme_refusal(module: nn.Module, scheme: Spec | Mapping[str, Spec], **arguments: Any) -> str | None:
    """Return why a scheme cannot initialize a module, or None: `initialize_`'s own check, without writing.

    Args:
        module: any module, on the meta device too.
        scheme: as in `initialize_`; `arguments` are those of it that decide the plan (act, gain, roles, …).

    >>> scheme_refusal(nn.Linear(3, 3), "dirac")
    'init=dirac needs convolutions and the model has none: use init=identity or a model with convolutions.'
    """
    try:
        plan(module, request(scheme, **arguments))
    except Impossible as reason:
        return str(reason)
    return None


def _plan_parameter(
    parameter: Parameter, rule: GlobRule | None, layer: WeightLayer | None, wanted: Request, refuse: bool
) -> FillTask:
    if not wanted.means(*parameter.names):
        return FillTask(parameter, "skipped")
    if rule is None:
        return FillTask(parameter, "unmatched")
    if parameter.refusal:
        if refuse:
            raise UserError(f"{parameter.name} cannot be initialized: {parameter.refusal}.")
        return FillTask(parameter, "refused", glob=rule.glob)
    return _plan_matched(parameter, rule, layer, wanted)


def _plan_matched(parameter: Parameter, rule: GlobRule, layer: WeightLayer | None, wanted: Request) -> FillTask:
    scheme, role = rule.scheme, layer.role if layer else ""
    if parameter.is_weight:
        return _weight_task(parameter, layer, wanted, scheme, rule.glob)
    if rule.own and scheme.own_gain is None and scheme.elementwise:
        return _fanless_task(parameter, scheme, role, rule.glob)
    dtype = parameter.tensor.dtype
    if parameter.kind == "unknown" or not (dtype.is_floating_point or dtype.is_complex):
        if rule.own:
            why = f" ({parameter.mismatch})" if parameter.mismatch else ""
            raise UserError(
                f"init={scheme.name} needs fans and {parameter.name} is of no kind that initlab knows{why}: say what "
                f"it is with kinds={{{parameter.name!r}: 'dense'}}, or choose normal, uniform, constant or zeros."
            )
        return FillTask(parameter, "left", glob=rule.glob)
    if parameter.kind == "bias":
        how = "bias" if scheme.bias is not None else "normal" if wanted.sigma_b else "constant"
        gates = gate_laws(parameter, wanted.forget_bias, wanted.chrono) if is_gate_bias(parameter) else NO_GATES
        bias, blocks = wanted.sigma_b, parameter.blocks
        return FillTask(parameter, how, scheme, role, sigma_b=bias, glob=rule.glob, gates=gates, blocks=blocks)
    if parameter.kind in TABLE_KINDS:
        return _fanless_task(parameter, TABLE_SCHEME, role, rule.glob)
    return FillTask(parameter, "constant", glob=rule.glob)


def _fanless_task(parameter: Parameter, scheme: Scheme, role: str, glob: str) -> FillTask:
    # A law that looks at no fan, for the parameter as a whole.
    return FillTask(parameter, "scheme", scheme, role, (role,), (1.0,), glob=glob, blocks=table_blocks(parameter.shape))


def _weight_task(
    parameter: Parameter, layer: WeightLayer | None, wanted: Request, scheme: Scheme, glob: str
) -> FillTask:
    default = "embedding" if parameter.kind == "embedding" else "hidden"
    role = layer.role if layer else default
    roles = tuple(block.label if block.label in ("q", "k", "v") else role for block in parameter.blocks)
    gains: list[float] = []
    known: dict[Any, float] = {}
    for block, own in zip(parameter.blocks, roles, strict=True):
        key = (block.fans, block.shape, own)
        if key not in known:
            if reason := scheme.structural(parameter.kind, filled_shape(parameter, block), own):
                raise Impossible(f"init={scheme.name} cannot fill {parameter.name}: {reason}.")
            known[key] = _gain(wanted, scheme, parameter, block, own, layer)
        gains.append(known[key])
    task = FillTask(parameter, "scheme", scheme, role, roles, tuple(gains), glob=glob, blocks=parameter.blocks)
    if parameter.tensor.dtype.is_complex:
        _check_complex(task, scheme)
    return task


def _check_complex(task: FillTask, scheme: Scheme) -> None:
    # Independent elements have real and imaginary parts of half the variance each; a real pattern stays real.
    law = task.promised()[0]
    if not law.deterministic and not (scheme.elementwise and law.mean == 0):
        raise Impossible(
            f"init={scheme.name} cannot fill {task.parameter.name}: it is complex, and only schemes of independent "
            "elements with mean 0 (he_normal, glorot_uniform, …) and fixed patterns say what that means."
        )


def _gain(
    wanted: Request, scheme: Scheme, parameter: Parameter, block: Block, role: str, layer: WeightLayer | None
) -> float:
    if scheme.derived == "moments":
        return wanted.flows[parameter.layer]
    if wanted.gain == "paper":
        return scheme.gain(wanted.act, block.fans, role)
    fed_by_activation = layer is None or layer.fed_by in ("activation", "unknown")
    if isinstance(wanted.gain, str) and (role in GAINLESS_ROLES or not fed_by_activation):
        return 1.0
    return float(wanted.number)


def _check_convolutions(tasks: Sequence[FillTask]) -> None:
    weights = [task for task in tasks if task.rule == "scheme" and task.parameter.is_weight]
    if any(task.parameter.kind in ("conv", "transposed_conv") for task in weights):
        return
    for task in weights:
        if task.scheme is not None and task.scheme.conv_only:
            counterpart = "identity" if task.scheme.name == "dirac" else "orthogonal"
            raise Impossible(
                f"init={task.scheme.name} needs convolutions and the model has none: "
                f"use init={counterpart} or a model with convolutions."
            )


def _check_gates(tasks: Sequence[FillTask], wanted: Request) -> None:
    for key, value in (("forget_bias", wanted.forget_bias), ("chrono", wanted.chrono)):
        if value is not None and not any(task.gates for task in tasks):
            kinds = " or ".join(KEEP_GATES)
            raise Impossible(f"{key}={value} needs an {kinds} with biases and the module has none: leave it out.")
