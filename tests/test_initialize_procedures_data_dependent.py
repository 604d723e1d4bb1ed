"""Procedures that look at a batch or at gradients: each has the property that its paper claims."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.activations import ACTIVATIONS
from initlab.errors import UserError
from initlab.initialize.procedures import PROCEDURES
from initlab.initialize.procedures.data_dependent import equalize_rates, relative_gradients
from initlab.initialize.procedures.gradient_based import gradient_quotient
from initlab.initialize.procedures.roles import make_context
from initlab.models import build

FEATURES, CLASSES = 24, 5


def batch(count: int = 256, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (FEATURES,)), generator=torch.Generator().manual_seed(1))


def labels(count: int = 256) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(2))


def mlp(depth: int, act="tanh", width: int = 48, **options) -> nn.Module:
    return build("mlp", depth=depth, width=width, act=act, input_shape=(FEATURES,), classes=CLASSES, **options)


def preactivations(net: nn.Module, x: Tensor) -> list[Tensor]:
    """What every layer puts out, units last; found without the package's own hooks."""
    seen: list[Tensor] = []
    handles = [
        m.register_forward_hook(lambda m, args, out: seen.append(out.detach().double()))
        for m in net.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    net(x)
    for handle in handles:
        handle.remove()
    return [out.movedim(1, -1).flatten(0, -2) if out.dim() == 4 else out for out in seen]


# --- lsuv -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_lsuv_brings_every_preactivation_to_variance_1_at_depth_30(act):
    net, x = mlp(30, act), batch()
    initlab.initialize_(net, "lsuv", act=act, inputs=x)
    variances = [float(h.var(correction=0)) for h in preactivations(net, x)]
    assert len(variances) == 31
    assert variances == pytest.approx([1.0] * 31, abs=0.05)


@pytest.mark.parametrize("family", ["cnn", "resnet", "resmlp", "vit"])
@pytest.mark.parametrize("norm", ["none", "norm"])
def test_lsuv_on_every_family(family, norm):
    place = {"none": "none", "norm": "pre" if family == "vit" else "batch"}[norm]
    shape = (FEATURES,) if family == "resmlp" else (2, 8, 8)
    net = build(family, depth=2, width=8, act="relu", input_shape=shape, classes=CLASSES, norm=place)
    x = batch(64, *shape)
    before = {name: value.clone() for name, value in net.named_buffers()}
    initlab.initialize_(net, "lsuv", act="relu", inputs=x)
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    for h in preactivations(net.train(), x):
        assert float(h.var(correction=0)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("scheme", ["lsuv", "data_dependent", "weight_norm_init"])
def test_a_layer_that_cannot_be_brought_there_is_named(scheme):
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.Threshold(1e9, 0.0), nn.Linear(16, 16))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=rf"init={scheme} cannot .* 2\b.*on this batch"):
        initlab.initialize_(net, scheme, inputs=batch())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_lsuv_keeps_the_orthogonal_directions():
    net = mlp(3)
    initlab.initialize_(net, "lsuv", act="tanh", inputs=batch())
    gram = net.hidden[1].weight.detach() @ net.hidden[1].weight.detach().T
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(48), atol=1e-5, rtol=0)


# --- per-unit normalization -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize(
    ("scheme", "own"), [("data_dependent", {"equal_rates": False}), ("data_dependent", {}), ("weight_norm_init", {})]
)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_every_unit_has_mean_0_and_one_variance(family, scheme, own, act):
    shape = (FEATURES,) if family == "mlp" else (2, 8, 8)
    net, x = build(family, depth=4, width=32, act=act, input_shape=shape, classes=CLASSES), batch(128, *shape)
    initlab.initialize_(net, scheme, act=act, inputs=x, parameters=own)
    moved = scheme == "data_dependent" and not own and act == "relu"
    for h in preactivations(net, x):
        std = h.std(0, correction=0)
        assert float((h.mean(0) / std).abs().max()) < 1e-4
        # Where scale was moved between layers, the units of one layer still share theirs.
        expected = torch.ones_like(std) * (std[0] if moved else 1.0)
        torch.testing.assert_close(std, expected, atol=1e-3, rtol=1e-3)


def test_all_layers_of_a_homogeneous_chain_change_at_one_rate():
    net, x = mlp(6, "relu"), batch()
    found = initlab.initialize.procedures.procedure("data_dependent", equal_rates=False)
    initlab.initialize_(net, found, act="relu", inputs=x)
    case = make_context(net, found, act="relu")
    case.inputs = x
    before, outputs = relative_gradients(case), net(x).detach()
    assert max(before) / min(before) > 1.5
    equalize_rates(case)
    after = relative_gradients(case)
    assert after == pytest.approx([after[0]] * 7, rel=1e-3)
    torch.testing.assert_close(net(x), outputs, rtol=1e-3, atol=1e-4)


def test_weight_norm_holds_what_its_own_initialization_sets():
    """With g and v in a parametrization the same function comes out, and |effective weight| is g."""
    plain = mlp(2)
    normed = mlp(2)
    for layer in (*normed.hidden, normed.readout):
        nn.utils.parametrizations.weight_norm(layer)
    x = batch()
    for net in (plain, normed):
        initlab.initialize_(net, "weight_norm_init", act="tanh", inputs=x)
    torch.testing.assert_close(normed(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        normed.hidden[0].parametrizations.weight.original0.flatten(), plain.hidden[0].weight.norm(dim=1)
    )


def test_a_unit_that_sees_nothing_stays_and_the_others_do_not():
    x = batch()
    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Identity())
    x[:, 0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROCEDURES, "data_dependent", PROCEDURES["data_dependent"].bind(base="identity"))
        initlab.initialize_(net, "data_dependent", inputs=x)
    std = net(x).detach().std(0, correction=0)
    assert std.tolist() == pytest.approx([0, 1, 1, 1], abs=1e-5)


# --- gradients --------------------------------------------------------------------------------------------------------


def quotient(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return gradient_quotient(F.cross_entropy(net(x), y), list(net.parameters())).item()


def test_gradient_quotient_of_a_quadratic_is_its_curvature():
    """Loss Σ aᵢ xᵢ²/2: g = a x, H g = a² x, so |(g − Hg)/g − 1| = a."""
    a = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert gradient_quotient((a * x**2).sum() / 2, [x]).item() == pytest.approx(5.5 / 3, rel=1e-4)


@pytest.mark.parametrize("base", ["naive_normal", "he_normal"])
def test_metainit_lowers_the_gradient_quotient_from_a_bad_start(base):
    net, x, y = mlp(5), batch(64), labels(64)
    initlab.initialize_(net, base, act="tanh")
    before = quotient(net, x, y)
    own = {"base": base}
    initlab.initialize_(net, "metainit", act="tanh", inputs=x, targets=y, parameters=own)
    assert quotient(net, x, y) < 0.6 * before


def loss_after_a_step(net: nn.Module, x: Tensor, y: Tensor, rate: float, adam: bool) -> float:
    parameters = list(net.parameters())
    grads = torch.autograd.grad(F.cross_entropy(net(x), y), parameters)
    moved = {n: p - rate * (g.sign() if adam else g) for (n, p), g in zip(net.named_parameters(), grads, strict=True)}
    return F.cross_entropy(torch.func.functional_call(net, moved, (x,)), y).item()


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adam", 0.001)])
def test_gradinit_lowers_the_loss_after_one_step(optimizer, rate):
    net, x, y = mlp(5, "relu"), batch(192), labels(192)
    start = {"base": "normal", "optimizer": optimizer, "eta_step": rate, "steps": 0, "gamma": 10.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROCEDURES, "gradinit", PROCEDURES["gradinit"].bind(lr=0.03))
        own = {**start, "base": "he_normal"}
        initlab.initialize_(net, "gradinit", act="relu", inputs=x, targets=y, parameters=own)
        before = loss_after_a_step(net, x, y, rate, optimizer == "adam")
        own["steps"] = 60
        initlab.initialize_(net, "gradinit", act="relu", inputs=x, targets=y, parameters=own)
    assert loss_after_a_step(net, x, y, rate, optimizer == "adam") < before - 0.05


@pytest.mark.parametrize("name", [n for n, p in PROCEDURES.items() if "data" in p.needs])
def test_the_same_batch_and_seed_give_the_same_weights(name):
    own = {"steps": 3} if "steps" in PROCEDURES[name].parameters and name != "lsuv" else {}
    prints = []
    for seed in (0, 0, 1):
        net = mlp(2)
        torch.manual_seed(len(prints))
        initlab.initialize_(net, name, act="tanh", seed=seed, inputs=batch(64), parameters=own)
        prints.append(initlab.fingerprint(net))
    assert prints[0] == prints[1] != prints[2]
