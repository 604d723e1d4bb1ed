"""Laws for transformers: gpt2, deepnorm, t_fixup, and attention that starts near the identity (mimetic)."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from initlab.initialize.procedures.record import Procedure, ProcedureContext, RoleLayer
from initlab.inspection import Block
from initlab.schemes import SCHEMES
from initlab.schemes.record import one_thread

NORMAL = SCHEMES["normal"].bind(std=0.02)
GLOROT = SCHEMES["glorot_normal"]
HEAD_ATTRIBUTES = ("heads", "num_heads", "n_head", "n_heads", "num_attention_heads")
"""Names under which modules declare their number of heads."""


def _gpt2(context: ProcedureContext) -> None:
    scheme = NORMAL.bind(std=context.parameters["std"])
    for layer in context.layers:
        context.fill(layer, scheme, context.branch_count**-0.5 if layer.role == "branch_end" else 1.0)


def _fill_by_depth(context: ProcedureContext, beta: float) -> None:
    # Values, outputs and both dense layers are scaled: the output of a branch is linear in each of them.
    def fill(layer: RoleLayer) -> None:
        scaled = layer.inside_branch or layer.role == "branch_end"
        context.fill(layer, GLOROT, lambda block: beta if scaled or layer.role_of(block) == "v" else 1.0)

    for layer in context.layers:
        if layer.role != "embedding":
            fill(layer)


def _count_blocks(context: ProcedureContext) -> int:
    # A block is attention and dense layers: two branches.
    return max(context.branch_count // 2, 1)


def _deepnorm(context: ProcedureContext) -> None:
    _fill_by_depth(context, (8 * _count_blocks(context)) ** -0.25)


def _t_fixup(context: ProcedureContext) -> None:
    beta = 0.67 * _count_blocks(context) ** -0.25
    _fill_by_depth(context, beta)
    for layer in context.layers_of_role("first"):
        context.scale(layer.parameter, beta)
    for layer in context.layers_of_role("embedding"):
        context.fill(layer, NORMAL.bind(std=layer.parameter.shape[-1] ** -0.5), beta)


def _branch_refusal(context: ProcedureContext) -> str | None:
    if any(layer.inside_branch for layer in context.layers):
        return None
    return (
        "scales the dense layers inside the branches too and finds none: "
        "name them with roles={'branch': '*.fc1', 'branch_end': ['*.o_proj', '*.fc2']}"
    )


def _norm_refusal(context: ProcedureContext) -> str | None:
    norm = context.normalization()
    text = f"replaces normalization, and the module has some ({norm}): build it without"
    return text if norm else _branch_refusal(context)


class _Projection(NamedTuple):
    # A square projection of attention: a block of a layer's weight.
    layer: RoleLayer
    block: Block

    def write(self, context: ProcedureContext, matrix: Tensor) -> None:
        values = self.layer.parameter.values().clone()
        self.block.view(values).copy_(matrix)
        context.write(self.layer.parameter, values)


def _mimetic(context: ProcedureContext) -> None:
    given = context.parameters
    for q, k, v, o, heads in _find_attentions(context):
        width = q.block.shape[1]
        generator = context.generator("mimetic", q.layer.parameter.name)
        alpha, beta, rank = given["alpha_qk"], given["beta_qk"], width // heads
        factors = [_low_rank_factors(width, alpha, beta, rank, generator) for _ in range(heads)]
        q.write(context, torch.cat([left.T for left, _ in factors]))
        k.write(context, torch.cat([right.T for _, right in factors]))
        left, right = _low_rank_factors(width, given["alpha_vp"], -given["beta_vp"], width, generator)
        v.write(context, left.T)
        o.write(context, right)


def _find_attentions(context: ProcedureContext) -> list[tuple[_Projection, _Projection, _Projection, _Projection, int]]:
    # In order of registration, q, k and v come before the projection that ends their branch.
    attentions = []
    waiting: dict[str, _Projection] = {}
    for layer in context.layers:
        for block in layer.parameter.blocks:
            role = layer.role_of(block)
            if role in ("q", "k", "v"):
                waiting[role] = _Projection(layer, block)
        ends = layer.role in ("branch_end", "o")
        if len(waiting) == 3 and ends and layer.parameter.shape == waiting["q"].block.shape:
            end = _Projection(layer, layer.parameter.blocks[0])
            attentions.append((waiting["q"], waiting["k"], waiting["v"], end, count_heads(context, layer)))
            waiting = {}
    return attentions


def count_heads(context: ProcedureContext, layer: RoleLayer) -> int:
    """Return the heads of the attention that a projection ends, 0 where they are unknown.

    It is the parameter `heads`, or what the attention's module declares.
    """
    if context.parameters["heads"] is not None:
        return int(context.parameters["heads"])
    parent = layer.name.rpartition(".")[0]
    for name, part in context.module.named_modules():
        if name == parent or name.endswith(f".{parent}"):
            for attribute in HEAD_ATTRIBUTES:
                if isinstance(value := getattr(part, attribute, None), int):
                    return value
    return 0


def _mimetic_refusal(context: ProcedureContext) -> str | None:
    attentions = _find_attentions(context)
    if not attentions:
        return (
            "needs attention of square projections q, k, v and o in this order and finds none: "
            "name them with roles={'q': '*.q_proj', 'k': '*.k_proj', 'v': '*.v_proj', 'o': '*.o_proj'}"
        )
    for q, _, _, o, heads in attentions:
        rows, columns = q.block.shape
        if heads < 1 or rows % heads or rows != columns:
            name = o.layer.parameter.name
            return f"finds no number of heads of {name}, whose projections are {rows}x{columns}: set init.heads"
    return None


def _low_rank_factors(width: int, alpha: float, beta: float, rank: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # L Rᵀ is the best approximation of αZ + βI of this rank, Z ~ N(0, 1/width); both factors are (width, rank).
    z = torch.randn(width, width, dtype=torch.float64, generator=generator) / width**0.5
    with one_thread():
        u, s, vt = torch.linalg.svd(alpha * z + beta * torch.eye(width, dtype=torch.float64))
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).float(), (vt[:rank].T * root).float()


ATTENTION = {"q": "*.q_proj", "k": "*.k_proj", "v": "*.v_proj"}
ENDS = {"branch_end": "*.o_proj"}

ROWS = (
    Procedure(
        "gpt2",
        "N(0, std²), std = 0.02; branch ends ·1/√L, L branches",
        _gpt2,
        "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
        2019,
        "naive_normal",
        {"std": 0.02},
        roles=ENDS,
    ),
    Procedure(
        "deepnorm",
        "norm(α·x + f(x)), α = (2N)^(1/4), N blocks; Glorot, values, outputs and dense layers ·(8N)^(−1/4)",
        _deepnorm,
        "Wang et al. 2022, DeepNet: Scaling Transformers to 1,000 Layers",
        2022,
        "glorot_normal",
        needs=("structure", "architecture"),
        roles={"v": "*.v_proj", **ENDS},
        overrides={"residual": "deepnorm", "norm": "post"},
        possible=_branch_refusal,
    ),
    Procedure(
        "t_fixup",
        "no norms; Glorot, embeddings N(0, 1/d); entrance, values, outputs, dense layers ·0.67·N^(−1/4), N blocks",
        _t_fixup,
        "Huang, Perez, Ba & Volkovs 2020, Improving Transformer Optimization Through Better Initialization",
        2020,
        "glorot_normal",
        needs=("structure", "architecture"),
        roles={"v": "*.v_proj", **ENDS},
        overrides={"norm": "none"},
        possible=_norm_refusal,
    ),
    Procedure(
        "mimetic",
        "W_Qᵀ W_K ≈ alpha_qk·Z + beta_qk·I in every head, W_V W_O ≈ alpha_vp·Z − beta_vp·I, Z ~ N(0, 1/d)",
        _mimetic,
        "Trockman & Kolter 2023, Mimetic Initialization of Self-Attention Layers",
        2023,
        "glorot_uniform",
        {"alpha_qk": 0.7, "beta_qk": 0.7, "alpha_vp": 0.4, "beta_vp": 0.4, "heads": None},
        roles=ATTENTION,
        possible=_mimetic_refusal,
    ),
)
