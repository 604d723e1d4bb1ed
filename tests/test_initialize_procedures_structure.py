"""Procedures that look at structure: each has the property that its paper claims, at several depths."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.errors import UserError
from initlab.initialize.procedures import PROCEDURES
from initlab.initialize.procedures.residual import _identity_at_start
from initlab.models import build

CLASSES = 5
SHAPES = {"resmlp": (12,), "resnet": (1, 8, 8), "vit": (1, 8, 8), "gpt": (6,)}
WIDTHS = {"resmlp": 32, "resnet": 8, "vit": 24, "gpt": 24}


def inputs(family: str, count: int = 64) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if family == "gpt":
        return torch.randint(CLASSES, (count, *SHAPES[family]), generator=draw)
    return torch.randn(count, *SHAPES[family], generator=draw)


def started(family: str, depth: int, scheme: str, act: str = "relu", **options) -> nn.Module:
    """A network with what the procedure brings with it, initialized by it (or by a plain scheme)."""
    brought = dict(PROCEDURES[scheme].overrides) if scheme in PROCEDURES else {}
    net = build(
        family, depth=depth, width=WIDTHS[family], act=act, input_shape=SHAPES[family], classes=CLASSES,
        **{**brought, **options},
    )  # fmt: skip
    initlab.initialize_(net, scheme, act=act)
    return net


def loss(net: nn.Module, family: str) -> Tensor:
    out = net(inputs(family))
    y = torch.randint(CLASSES, out.shape[:-1], generator=torch.Generator().manual_seed(2))
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


def updated(net: nn.Module, family: str, steps: int, rate: float) -> list[Tensor]:
    """Outputs before and after each of a few plain steps."""
    found = [net(inputs(family)).detach()]
    for _ in range(steps):
        grads = torch.autograd.grad(loss(net, family), list(net.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                if g is not None:
                    p -= rate * g
        found.append(net(inputs(family)).detach())
    return found


# --- branches that begin at zero --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("scheme", ["rezero", "skipinit"])
def test_a_deep_network_is_its_stream_at_the_start(scheme, family):
    """Whatever stands in the branches: with other weights there, the outputs are the same."""
    net = started(family, 4, scheme)
    before = net(inputs(family))
    with torch.no_grad():
        for layer in net.weight_layers:
            if layer.branch:
                net.get_submodule(layer.name).weight.add_(1.0)
    assert torch.equal(net(inputs(family)), before)
    assert float(net.get_submodule(net.weight_layers[1].name).weight.detach().std()) > 0


@pytest.mark.parametrize("family", SHAPES)
def test_rezeros_multipliers_learn_from_the_first_step(family):
    net = started(family, 3, "rezero")
    named = dict(net.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(loss(net, family), list(named.values())), strict=True))
    scales = [g for name, g in grads.items() if name.endswith("res_scale")]
    assert scales
    assert all(float(g.abs()) > 0 for g in scales)


@pytest.mark.parametrize(("scheme", "names"), [("rezero", "glorot_uniform"), ("skipinit", "he_normal")])
def test_other_weights_follow_the_base(scheme, names):
    rows = initlab.initialize_(
        build("resmlp", depth=2, width=32, act="relu", input_shape=(12,), classes=CLASSES, branch="learned"), scheme,
        act="relu",
    )  # fmt: skip
    said = dict(zip(rows["name"], rows["scheme"], strict=True))
    assert said["blocks.0.inner.weight"] == names
    assert said["blocks.1.branch.res_scale"] == scheme


def test_a_users_own_multipliers_are_named_by_globs():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.alpha = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return x + self.alpha * self.b(torch.relu(self.a(x)))

    net, x = nn.Sequential(Mine(), Mine()), torch.randn(4, 8)
    with pytest.raises(UserError, match="branch_scale"):
        initlab.initialize_(net, "rezero")
    initlab.initialize_(net, "rezero", roles={"branch_scale": "*.alpha"})
    assert torch.equal(net(x), x)


# --- fixup ------------------------------------------------------------------------------------------------------------


def fixups_first_update(depth: int, factor: float = 1.0) -> float:
    """How far the second step moves the stream: the first moves the readout alone, which begins at zero."""
    net, seen = started("resmlp", depth, "fixup"), []
    with torch.no_grad():
        for block in net.blocks:
            block.inner.weight.mul_(factor)
    net.readout.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    updated(net, "resmlp", 2, 0.1)
    return float((seen[-1] - seen[0]).norm())


def test_fixups_first_update_does_not_depend_on_depth():
    moves = [fixups_first_update(depth) for depth in (4, 16, 64)]
    assert max(moves) / min(moves) < 2.5
    # Without L^(−1/2) on the inner layers it grows with the depth.
    assert fixups_first_update(64, 8.0) / fixups_first_update(4, 2.0) > 10


@pytest.mark.parametrize("family", ["resmlp", "resnet"])
def test_fixup_sets_what_it_says(family):
    net = started(family, 4, "fixup")
    named = dict(net.named_parameters())
    blocks = 4 if family == "resmlp" else 12
    for layer in net.weight_layers:
        weight = named[f"{layer.name}.weight"].detach()
        if layer.role in ("branch_end", "readout"):
            assert not weight.any()
        elif layer.role == "hidden":
            he = (2 / weight[0].numel()) ** 0.5
            # The std of n Gaussian elements is off by at most 5/√(2n) but once in two million.
            assert float(weight.std()) == pytest.approx(he * blocks**-0.5, rel=5 / (2 * weight.numel()) ** 0.5)
    assert all(float(p.detach()) == 0 for name, p in named.items() if name.endswith(".shift"))
    assert all(float(p.detach()) == 1 for name, p in named.items() if name.endswith(".res_scale"))


# --- branches scaled by depth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_inverse_depth_scales_branch_ends_and_nothing_else(power):
    net, plain = started("resmlp", 9, "he_normal"), started("resmlp", 9, "he_normal")
    initlab.initialize_(net, "inverse_depth", act="relu", parameters={"power": power})
    theirs = dict(plain.named_parameters())
    for name, p in net.named_parameters():
        factor = 9**-power if name.endswith("outer.weight") else 1.0
        torch.testing.assert_close(p, theirs[name] * factor)


def branch_sum(family: str, depth: int, scheme: str) -> float:
    """Variance of what all branches together add to the stream."""
    net = started(family, depth, scheme, norm="pre") if scheme == "gpt2" else started(family, depth, scheme)
    seen: list[Tensor] = []
    net.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    net.blocks[-1].register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    net(inputs(family, 256))
    return float((seen[1] - seen[0]).var())


def test_gpt2s_residual_variance_does_not_depend_on_depth():
    sums = [branch_sum("gpt", depth, "gpt2") for depth in (4, 16, 48)]
    assert max(sums) / min(sums) < 1.5


def test_gpt2s_laws():
    net = started("gpt", 8, "gpt2", norm="pre")
    for layer in net.weight_layers:
        weight = net.get_submodule(layer.name).weight.detach()
        std = 0.02 / 16**0.5 if layer.role == "branch_end" else 0.02
        assert float(weight.std()) == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5)


# --- deepnorm and t_fixup ---------------------------------------------------------------------------------------------


def first_update(family: str, depth: int, scheme: str, **options) -> float:
    """How far a small gradient step on the weights of the branches, which the papers bound, moves the outputs."""
    net = started(family, depth, scheme, **options)
    before = net(inputs(family)).detach()
    weights = [net.get_submodule(layer.name).weight for layer in net.weight_layers if layer.branch]
    grads = torch.autograd.grad(loss(net, family), weights)
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            weight -= 0.001 * grad
    return float((net(inputs(family)).detach() - before).norm() / 0.001)


@pytest.mark.parametrize(
    ("scheme", "family", "norm"), [("deepnorm", "vit", "post"), ("t_fixup", "vit", "none"), ("t_fixup", "gpt", "none")]
)
def test_the_first_update_is_bounded_at_every_depth(scheme, family, norm):
    bounded = [first_update(family, depth, scheme) for depth in (2, 8, 32)]
    plain = [first_update(family, depth, "glorot_normal", norm=norm) for depth in (2, 8)]
    assert max(bounded) < 2 * bounded[0]
    assert plain[1] > 10 * plain[0]


@pytest.mark.parametrize(("scheme", "beta"), [("deepnorm", (8 * 4) ** -0.25), ("t_fixup", 0.67 * 4**-0.25)])
def test_values_outputs_and_dense_layers_are_scaled(scheme, beta):
    net = started("vit", 4, scheme)
    for layer in net.weight_layers:
        weight = net.get_submodule(layer.name).weight.detach()
        if layer.branch:
            glorot = (2 / sum(weight.shape)) ** 0.5
            expected = glorot if layer.role in ("q", "k") else beta * glorot
            assert float(weight.std()) == pytest.approx(expected, rel=5 / (2 * weight.numel()) ** 0.5)


def test_t_fixups_embeddings():
    weight = started("gpt", 4, "t_fixup").first.weight.detach()
    assert float(weight.std()) == pytest.approx(0.67 * 4**-0.25 * 24**-0.5, rel=5 / (2 * weight.numel()) ** 0.5)


# --- mimetic ----------------------------------------------------------------------------------------------------------


def products(net: nn.Module, heads: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    for block in net.blocks:
        a = block.attention.f
        q, k = (p.weight.detach().double().unflatten(0, (heads, -1)) for p in (a.query, a.key))
        found.append((torch.einsum("hri,hrj->hij", q, k), (a.out.weight @ a.value.weight).detach().double()))
    return found


@pytest.mark.parametrize("heads", [1, 4])
def test_mimetic_queries_and_keys_agree_and_values_oppose(heads):
    """Mean of a diagonal: β with std α/d; with fewer units than d in a head, still far above what is off it."""
    width = 64
    net = build("vit", depth=2, width=width, act="relu", input_shape=(1, 8, 8), classes=3, heads=heads)
    initlab.initialize_(net, "mimetic", act="relu")
    for qk, vo in products(net, heads):
        for head in qk:
            off = head - torch.diag(head.diagonal())
            assert float(head.diagonal().mean()) > 5 * float(off.abs().mean() / width**0.5)
            if heads == 1:
                assert float(head.diagonal().mean()) == pytest.approx(0.7, abs=5 * 0.7 / width)
                assert float(off.std()) == pytest.approx(0.7 / width**0.5, rel=0.1)
        assert float(vo.diagonal().mean()) == pytest.approx(-0.4, abs=5 * 0.4 / width)


def test_mimetic_on_torchs_packed_attention():
    layer = nn.MultiheadAttention(32, 2)
    with pytest.raises(ValueError, match="roles="):
        initlab.initialize_(layer, "mimetic")
    rows = initlab.initialize_(layer, "mimetic", roles={"o": "out_proj"})
    q, k, v = layer.in_proj_weight.detach().chunk(3)
    assert float((q[:16].T @ k[:16]).diagonal().mean()) > 0.2
    assert float((layer.out_proj.weight.detach() @ v).diagonal().mean()) == pytest.approx(-0.4, abs=5 * 0.4 / 32)
    assert set(rows[rows["scheme"] == "mimetic"]["name"]) == {"in_proj_weight", "out_proj.weight"}


def test_the_identity_is_the_whole_of_rezero():
    assert PROCEDURES["rezero"].apply_ is PROCEDURES["skipinit"].apply_ is _identity_at_start
