"""Residual branches that start small: rezero, skipinit, fixup, and branches scaled by depth."""

from initlab.initialize.procedures.record import Procedure, ProcedureContext


def _set_branch_scales(context: ProcedureContext, value: float) -> None:
    for parameter in context.parameters_by_role["branch_scale"]:
        context.set_constant(parameter, value)


def _identity_at_start(context: ProcedureContext) -> None:
    _set_branch_scales(context, 0.0)


def _fixup(context: ProcedureContext) -> None:
    inner = [layer for layer in context.layers if layer.inside_branch]
    ends, count = context.layers_of_role("branch_end"), context.branch_count
    per_branch = round((len(inner) + len(ends)) / count)
    factor = count ** (-1 / (2 * per_branch - 2)) if per_branch > 1 else 1.0
    for layer in inner:
        context.scale(layer.parameter, factor)
    for layer in (*ends, *context.layers_of_role("readout")):
        context.scale(layer.parameter, 0.0)
    for parameter in context.parameters_by_role["shift"]:
        context.set_constant(parameter, 0.0)
    _set_branch_scales(context, 1.0)


def _fixup_refusal(context: ProcedureContext) -> str | None:
    if not any(layer.inside_branch for layer in context.layers):
        return (
            "scales the layers inside every branch and finds none: "
            "name them with roles={'branch': 'blocks.*.fc1', 'branch_end': 'blocks.*.fc2'}"
        )
    if norm := context.normalization():
        return f"replaces normalization, and the module has some ({norm}): build it without (model.norm=none)"
    return None


def _inverse_depth(context: ProcedureContext) -> None:
    for layer in context.layers_of_role("branch_end"):
        context.scale(layer.parameter, context.branch_count ** -context.parameters["power"])


ENDS = {"branch_end": "blocks.*.fc2"}
ALPHA = {"branch_scale": "blocks.*.alpha"}

ROWS = (
    Procedure(
        "rezero",
        "x + α·f(x), α = 0 learned; other weights by `base`",
        _identity_at_start,
        "Bachlechner et al. 2021, ReZero is All You Need: Fast Convergence at Large Depth",
        2021,
        "glorot_uniform",
        {"base": "glorot_uniform"},
        ("structure", "architecture"),
        ALPHA,
        {"branch": "learned"},
    ),
    Procedure(
        "skipinit",
        "x + α·f(x) without normalization, α = 0 learned; He weights",
        _identity_at_start,
        "De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
        2020,
        "he_normal",
        {"base": "he_normal"},
        ("structure", "architecture"),
        ALPHA,
        {"branch": "learned", "norm": "none"},
    ),
    Procedure(
        "fixup",
        "branch ends and readout 0, other layers of a branch He·L^(−1/(2k−2)), k each; scalar shifts, multipliers",
        _fixup,
        "Zhang, Dauphin & Ma 2019, Fixup Initialization: Residual Learning Without Normalization",
        2019,
        needs=("structure", "architecture"),
        roles=ENDS,
        overrides={"branch": "learned", "shifts": True, "norm": "none"},
        optional=("shifts",),
        possible=_fixup_refusal,
    ),
    Procedure(
        "inverse_depth",
        "branch ends ·L^(−power), L branches: 1/√L or 1/L; other weights by `base`",
        _inverse_depth,
        "Hanin & Rolnick 2018, How to Start Training: The Effect of Initialization and Architecture",
        2018,
        "he_normal",
        {"base": "he_normal", "power": 0.5},
        roles=ENDS,
    ),
)
