"""Decide and check what `initialize_` does to each parameter, before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from initlab.errors import Impossible, UserError
from initlab.initialize.from_theory import autoinit_gains
from initlab.initialize.gate_biases import KEEP_GATES, gate_laws, is_gate_bias
from initlab.initialize.request import GlobRule, Request, Spec, assign_rules, request, require_module
from initlab.initialize.roles import declared_layers
from initlab.inspection import TABLE_KINDS, Block, NamedModule, Parameter, list_modules, list_parameters, table_blocks
from initlab.models.layers import WeightLayer
from initlab.schemes import SCHEMES, Law, Scheme, laws

GAINLESS_ROLES = ("first", "readout")
"""Roles whose layers get gain 1 where theory derives the gain."""

TABLE_SCHEME = SCHEMES["normal"].bind(std=0.02)
"""Tokens and tables that are added to a signal: Devlin et al. 2019 (BERT), Dosovitskiy et al. 2021 (ViT), Liu et al.
2021 (Swin)."""


NO_GATES: Mapping[str, Law] = MappingProxyType({})


class FillTask(NamedTuple):
    """What happens to one parameter.

    Attributes:
        parameter: the parameter.
        rule: scheme, bias (by the scheme's rule), normal (sigma_b), constant; left (of unknown kind), unmatched
            (no rule matches), skipped (`only` or `skip`), refused (it cannot be written; `parameter.refusal`).
        scheme: the scheme that fills it or sets its bias.
        role: its layer's.
        roles, gains: one per block; q, k and v have their own roles.
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
    def is_filled(self) -> bool:
        """Whether the parameter gets new values."""
        return self.rule in ("scheme", "bias", "normal", "constant")

    def promised_laws(self) -> list[Law]:
        """Return the law of each block (one for all where there are no blocks); [] where nothing is promised."""
        scheme = self.scheme
        if self.rule == "constant":
            promised = [laws.constant(self.parameter.start)]
        elif self.rule == "normal":
            promised = [laws.normal(0.0, self.sigma_b)]
        elif self.rule == "bias" and scheme is not None:
            promised = [law for block in self.blocks if (law := scheme.bias_law(block.fans)) is not None]
        elif self.rule == "scheme" and scheme is not None:
            # Hundreds of groups may share one law.
            law_of = cache(scheme.law) if len(self.blocks) > 1 else scheme.law
            parts = zip(self.blocks, self.gains, self.roles, strict=True)
            promised = [law_of(b.fans, gain, role, filled_shape(self.parameter, b)) for b, gain, role in parts]
        else:
            return []
        if self.gates:
            promised = promised * len(self.blocks) if len(promised) == 1 else promised
            promised = [self.gates.get(block.label, law) for block, law in zip(self.blocks, promised, strict=True)]
        return promised


def padding_row(parameter: Parameter) -> int | None:
    """Return the row of an embedding that stays zero, or None.

    >>> from initlab.inspection import walk
    >>> padding_row(next(walk(nn.Embedding(5, 2, padding_idx=-1))))
    4
    """
    row = getattr(parameter.owner, "padding_idx", None) if parameter.kind == "embedding" else None
    return None if row is None else int(row) % parameter.shape[0]


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
        doubly_matched: for parameters that more than one rule matches, the globs in order.
        modules: names and modules of the whole tree.
    """

    doubly_matched: dict[str, list[str]]
    modules: list[NamedModule]


def plan(module: nn.Module, asked: Request, refuse: bool = True) -> FillPlan:
    """Return one task per parameter, without writing; `module` may be on the meta device.

    Args:
        module: any module.
        asked: what `initialize_` is asked for, resolved by `request`.
        refuse: raise at the first parameter that cannot be written; else it gets the rule "refused".

    Raises:
        Impossible: the scheme cannot fill some weight of this module; the message names the first.
        UserError: a parameter that cannot be written as it is (lazy, spectral_norm, …), or a glob without a match.
    """
    require_module(module)
    modules = list_modules(module)
    for name, part in modules:
        if type(part).__module__.startswith(QUANTIZED_MODULES) and refuse and asked.selects(f"{name}.weight"):
            raise UserError(f"{name or 'the module'} is quantized: initialize the module before it is quantized.")
    parameters = list_parameters(modules, asked.kinds)
    rules, doubly_matched = assign_rules(parameters, asked)
    schemes = {name: rule.scheme for name, rule in rules.items()}
    layers = declared_layers(module, parameters, asked, schemes)
    if any(scheme.derived == "moments" for scheme in schemes.values()):
        asked = replace(asked, layer_gains=autoinit_gains(module, parameters, layers, asked.act))
    tasks = FillPlan(_plan_parameter(p, rules.get(p.name), layers.get(p.layer), asked, refuse) for p in parameters)
    tasks.doubly_matched, tasks.modules = doubly_matched, modules
    _check_convolutions(tasks)
    _check_gates(tasks, asked)
    return tasks


QUANTIZED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def scheme_refusal(module: nn.Module, scheme: Spec | Mapping[str, Spec], **arguments: Any) -> str | None:
    """Return why a scheme cannot initialize a module, or None: the check of `initialize_`, without writing.

    Args:
        module: any module, also on the meta device.
        scheme: as in `initialize_`.
        **arguments: those of `request` (act, gain, roles, …).

    >>> scheme_refusal(nn.Linear(3, 3), "dirac")
    'init=dirac needs convolutions and the model has none: use init=identity or a model with convolutions.'
    """
    try:
        plan(module, request(scheme, **arguments))
    except Impossible as reason:
        return str(reason)
    return None


def _plan_parameter(
    parameter: Parameter, rule: GlobRule | None, layer: WeightLayer | None, asked: Request, refuse: bool
) -> FillTask:
    if not asked.selects(*parameter.names):
        return FillTask(parameter, "skipped")
    if rule is None:
        return FillTask(parameter, "unmatched")
    if parameter.refusal:
        if refuse:
            raise UserError(f"{parameter.name} cannot be initialized: {parameter.refusal}.")
        return FillTask(parameter, "refused", glob=rule.glob)
    scheme, role = rule.scheme, layer.role if layer else ""
    if parameter.is_weight:
        return _plan_weight(parameter, layer, asked, rule)
    if rule.without_weight and scheme.own_gain is None and scheme.elementwise:
        return _plan_table(parameter, scheme, role, rule.glob)
    dtype = parameter.tensor.dtype
    if parameter.kind == "unknown" or not (dtype.is_floating_point or dtype.is_complex):
        if rule.without_weight:
            why = f" ({parameter.mismatch})" if parameter.mismatch else ""
            raise UserError(
                f"init={scheme.name} needs fans and {parameter.name} is of no kind that initlab knows{why}: say what "
                f"it is with kinds={{{parameter.name!r}: 'dense'}}, or choose normal, uniform, constant or zeros."
            )
        return FillTask(parameter, "left", glob=rule.glob)
    if parameter.kind == "bias":
        bias_rule = "bias" if scheme.bias is not None else "normal" if asked.sigma_b else "constant"
        gates = gate_laws(parameter, asked.forget_bias, asked.chrono) if is_gate_bias(parameter) else NO_GATES
        std, blocks = asked.sigma_b, parameter.blocks
        return FillTask(parameter, bias_rule, scheme, role, sigma_b=std, glob=rule.glob, gates=gates, blocks=blocks)
    if parameter.kind in TABLE_KINDS:
        return _plan_table(parameter, TABLE_SCHEME, role, rule.glob)
    return FillTask(parameter, "constant", glob=rule.glob)


def _plan_table(parameter: Parameter, scheme: Scheme, role: str, glob: str) -> FillTask:
    # A law without fans, for the parameter as a whole.
    return FillTask(parameter, "scheme", scheme, role, (role,), (1.0,), glob=glob, blocks=table_blocks(parameter.shape))


def _plan_weight(parameter: Parameter, layer: WeightLayer | None, asked: Request, rule: GlobRule) -> FillTask:
    scheme, role = rule.scheme, "embedding" if parameter.kind == "embedding" else "hidden"
    role = layer.role if layer else role
    roles = tuple(block.label if block.label in ("q", "k", "v") else role for block in parameter.blocks)
    known: dict[Any, float] = {}
    for block, own in zip(parameter.blocks, roles, strict=True):
        if (block.fans, block.shape, own) not in known:
            if reason := scheme.block_refusal(parameter.kind, filled_shape(parameter, block), own):
                raise Impossible(f"init={scheme.name} cannot fill {parameter.name}: {reason}.")
            known[block.fans, block.shape, own] = _gain(asked, scheme, parameter, block, own, layer)
    gains = tuple(known[b.fans, b.shape, own] for b, own in zip(parameter.blocks, roles, strict=True))
    task = FillTask(parameter, "scheme", scheme, role, roles, gains, glob=rule.glob, blocks=parameter.blocks)
    if parameter.tensor.dtype.is_complex:
        # Independent elements have real and imaginary parts of half the variance each; a real pattern stays real.
        law = task.promised_laws()[0]
        if not law.deterministic and not (scheme.elementwise and law.mean == 0):
            raise Impossible(
                f"init={scheme.name} cannot fill {parameter.name}: it is complex, and only schemes of independent "
                "elements with mean 0 (he_normal, glorot_uniform, …) and fixed patterns say what that means."
            )
    return task


def _gain(
    asked: Request, scheme: Scheme, parameter: Parameter, block: Block, role: str, layer: WeightLayer | None
) -> float:
    if scheme.derived == "moments":
        return asked.layer_gains[parameter.layer]
    if asked.gain == "paper":
        return scheme.gain(asked.act, block.fans, role)
    fed_by_activation = layer is None or layer.fed_by in ("activation", "unknown")
    if isinstance(asked.gain, str) and (role in GAINLESS_ROLES or not fed_by_activation):
        return 1.0
    return float(asked.number)


def _check_convolutions(tasks: Sequence[FillTask]) -> None:
    weights = [task for task in tasks if task.rule == "scheme" and task.parameter.is_weight]
    if any(task.parameter.kind in ("conv", "transposed_conv") for task in weights):
        return
    for task in weights:
        if task.scheme is not None and (counterpart := task.scheme.dense_counterpart):
            raise Impossible(
                f"init={task.scheme.name} needs convolutions and the model has none: "
                f"use init={counterpart} or a model with convolutions."
            )


def _check_gates(tasks: Sequence[FillTask], asked: Request) -> None:
    for key, value in (("forget_bias", asked.forget_bias), ("chrono", asked.chrono)):
        if value is not None and not any(task.gates for task in tasks):
            kinds = " or ".join(KEEP_GATES)
            raise Impossible(f"{key}={value} needs an {kinds} with biases and the module has none: leave it out.")
