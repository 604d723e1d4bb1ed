"""Laws for transformers: gpt2, deepnorm, t_fixup, and attention that begins near the identity (mimetic)."""

from collections.abc import Callable

import torch
from torch import Tensor

from initlab.initialize.procedures.record import Procedure, ProcedureContext, RoleLayer
from initlab.inspection import Block
from initlab.schemes import SCHEMES
from initlab.schemes.record import one_thread

NORMAL = SCHEMES["normal"].bind(std=0.02)
GLOROT = SCHEMES["glorot_normal"]


def _gpt2(case: ProcedureContext) -> None:
    std = case.parameters["std"]
    for layer in case.layers:
        factor = case.branches**-0.5 if layer.role == "branch_end" else 1.0
        case.fill(layer, NORMAL.bind(std=std), factor)


def _fill_by_depth(case: ProcedureContext, beta: float) -> None:
    # Values, outputs and both dense layers are scaled: what a branch adds is linear in each of them.
    def factor(layer: RoleLayer) -> Callable[[Block], float]:
        inside = layer.branch > 0 or layer.role in ("branch", "branch_end")
        return lambda block: beta if layer.role_of(block) == "v" or (inside and layer.role in SCALED_ROLES) else 1.0

    for layer in case.layers:
        if layer.role != "embedding":
            case.fill(layer, GLOROT, factor(layer))


SCALED_ROLES = ("hidden", "branch", "branch_end")


def _count_blocks(case: ProcedureContext) -> int:
    # A block is attention and dense layers: two branches.
    return max(case.branches // 2, 1)


def _deepnorm(case: ProcedureContext) -> None:
    _fill_by_depth(case, (8 * _count_blocks(case)) ** -0.25)


def _t_fixup(case: ProcedureContext) -> None:
    beta = 0.67 * _count_blocks(case) ** -0.25
    _fill_by_depth(case, beta)
    for layer in case.of_role("first"):
        case.scale(layer.parameter, beta)
    for layer in case.of_role("embedding"):
        width = layer.parameter.shape[-1]
        case.fill(layer, SCHEMES["normal"].bind(std=width**-0.5), beta)


def _branch_refusal(case: ProcedureContext) -> str | None:
    if any(layer.role == "branch" or (layer.branch and layer.role == "hidden") for layer in case.layers):
        return None
    return (
        "scales the dense layers inside the branches too and knows of none: "
        "name them with roles={'branch': '*.fc1', 'branch_end': ['*.o_proj', '*.fc2']}"
    )


def _norm_refusal(case: ProcedureContext) -> str | None:
    norms = [name for name, part in case.module.named_modules() if "Norm" in type(part).__name__]
    return (
        f"replaces normalization, and the module has some ({norms[0]}): build it without"
        if norms
        else _branch_refusal(case)
    )


def _mimetic(case: ProcedureContext) -> None:
    given = case.parameters
    for q, k, v, o, heads in _find_attentions(case):
        width = q.shape[1]
        generator = case.generator("mimetic", q.name)
        per_head = width // heads
        for h in range(heads):
            rows = slice(h * per_head, (h + 1) * per_head)
            left, right = _low_rank_factors(width, given["alpha_qk"], given["beta_qk"], per_head, generator)
            q.rows[rows], k.rows[rows] = left.T, right.T
        left, right = _low_rank_factors(width, given["alpha_vp"], -given["beta_vp"], width, generator)
        v.rows[:], o.rows[:] = left.T, right
        for part in (q, k, v, o):
            part.write(case)


class _Projection:
    # One projection while it is computed: `rows` is (out, in), written back into its block at the end.
    def __init__(self, layer: RoleLayer, block: Block):
        self.layer, self.block, self.name = layer, block, layer.parameter.name
        self.shape = block.shape
        self.rows = torch.zeros(block.shape, dtype=torch.float32)

    def write(self, case: ProcedureContext) -> None:
        values = self.layer.parameter.values().clone()
        self.block.view(values).copy_(self.rows)
        case.write(self.layer.parameter, values)


def _find_attentions(case: ProcedureContext) -> list[tuple[_Projection, _Projection, _Projection, _Projection, int]]:
    # In order of registration, q, k and v come before the projection that ends their branch.
    found: list[tuple[_Projection, _Projection, _Projection, _Projection, int]] = []
    open_: dict[str, _Projection] = {}
    for layer in case.layers:
        for block in layer.parameter.blocks:
            role = layer.role_of(block)
            if role in ("q", "k", "v"):
                open_[role] = _Projection(layer, block)
        if len(open_) == 3 and layer.role in ("branch_end", "o") and layer.parameter.shape == open_["q"].shape:
            end = _Projection(layer, layer.parameter.blocks[0])
            found.append((open_["q"], open_["k"], open_["v"], end, count_heads(case, layer)))
            open_ = {}
    return found


def count_heads(case: ProcedureContext, layer: RoleLayer) -> int:
    """Return the heads of the attention that a projection ends: the parameter `heads`, or what its module declares."""
    if case.parameters["heads"] is not None:
        return int(case.parameters["heads"])
    parent = layer.name.rpartition(".")[0]
    for name, part in case.module.named_modules():
        if name == parent or name.endswith(f".{parent}"):
            for attribute in ("heads", "num_heads", "n_head", "n_heads", "num_attention_heads"):
                if isinstance(value := getattr(part, attribute, None), int):
                    return value
    return 0


def _mimetic_refusal(case: ProcedureContext) -> str | None:
    found = _find_attentions(case)
    if not found:
        return (
            "needs attention of square projections q, k, v and o in this order and finds none: "
            "name them with roles={'q': '*.q_proj', 'k': '*.k_proj', 'v': '*.v_proj', 'o': '*.o_proj'}"
        )
    for q, _, _, o, heads in found:
        if heads < 1 or q.shape[0] % heads or q.shape[0] != q.shape[1]:
            return (
                f"does not know the heads of {o.name}, whose projections are {q.shape[0]}x{q.shape[1]}: set init.heads"
            )
    return None


def _low_rank_factors(
    width: int, alpha: float, beta: float, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
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
