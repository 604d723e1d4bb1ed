"""µP and its coordinate check over widths; activations shaped by DKS and TAT over depths."""

import math
from importlib import import_module

import pytest
import torch
from torch import nn

import initlab
from initlab.activations import ACTIVATIONS, activation
from initlab.errors import Impossible, UserError
from initlab.initialize.procedures import coordinate_check, rates, shape
from initlab.models import build
from initlab.theory.maps import c_map, c_map_slope, moments

WIDTHS = (64, 128, 256, 512, 1024)


# --- µP ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.001), ("sgd", 0.1)])
def test_the_coordinate_check_is_flat_under_mup_and_not_under_the_standard(optimizer, lr):
    """One seed: slopes of means over 64 × width coordinates scatter by less than 0.05."""
    frame = coordinate_check("mup", widths=WIDTHS, optimizer=optimizer, lr=lr)
    assert frame.attrs["flat"]
    assert "flat over widths 64 to 1024" in frame.attrs["verdict"]
    assert max(map(abs, frame.attrs["slopes"].values())) < 0.2
    standard = coordinate_check("lecun_normal", widths=WIDTHS, optimizer=optimizer, lr=lr)
    assert not standard.attrs["flat"]
    assert "not flat" in standard.attrs["verdict"]
    assert max(map(abs, standard.attrs["slopes"].values())) > 0.4


@pytest.mark.parametrize("wrong", ["hidden.1.weight", "readout.weight"])
def test_the_check_finds_a_rate_that_is_missing(wrong, monkeypatch):
    def without(module, scheme, optimizer, **own):
        return {name: factor for name, factor in rates(module, scheme, optimizer, **own).items() if name != wrong}

    monkeypatch.setattr(import_module("initlab.initialize.procedures.coordinate_check"), "rates", without)
    frame = coordinate_check("mup", widths=(64, 256, 1024))
    assert not frame.attrs["flat"]


def test_the_check_of_a_users_own_model_and_data():
    def make(width):
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))

    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    frame = coordinate_check("mup", widths=(32, 64), build=make, inputs=x, targets=torch.arange(32) % 3, act="tanh",
                             steps=2)  # fmt: skip
    assert frame.layer.unique().tolist() == ["0", "2", "4"]
    assert sorted(frame.step.unique()) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": (64,)}, "two different"),
        ({"widths": 64}, "widths=64 must be at least two different"),
        ({"optimizer": "lion"}, "optimizer=lion"),
        ({"seeds": 3}, "seeds=3 must be at least one seed"),
        ({"seeds": ()}, "seeds=.. must be at least one seed"),
        ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
        ({"lr": -1}, "lr=-1 must be a finite number"),
        ({"build": nn.Linear(2, 2)}, "build is a Linear: it must be a function"),
        ({"build": str}, r"build\(64\) returned str: it must return a torch.nn.Module"),
        ({"inputs": [1.0, 2.0]}, "inputs is a list: give inputs=batch"),
        (
            {"build": lambda width: nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))},
            r"what build\(64\) returned cannot take a batch of shape 64x32: layer 0 \(Linear\) expects 6 numbers",
        ),
    ],
)
def test_refusals_of_the_check(arguments, words):
    with pytest.raises(UserError, match=words):
        coordinate_check("mup", **arguments)


def test_rates_of_a_scheme_that_nobody_knows():
    with pytest.raises(UserError, match=r"init=mupp is unknown\. Did you mean 'mup'"):
        rates(nn.Linear(2, 2), "mupp", "adam")


def test_mups_laws_and_rates():
    """Yang et al. 2022, table 3, at four times the base width."""
    net = build("mlp", depth=2, width=256, act="relu", input_shape=(40,), classes=10)
    initlab.initialize_(net, "mup", act="relu")
    stds = {"hidden.0": 40**-0.5, "hidden.1": 1 / 16, "readout": 1 / 32}
    for name, std in stds.items():
        weight = net.get_submodule(name).weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5)
    adam, sgd = (rates(net, "mup", name) for name in ("adam", "sgd"))
    names = ["hidden.0.weight", "hidden.0.bias", "hidden.1.weight", "hidden.1.bias", "readout.weight"]
    assert [adam[name] for name in names] == [1, 1, 1 / 4, 1, 1 / 4]
    assert [sgd[name] for name in names] == [4, 4, 1, 4, 1 / 4]
    assert "readout.bias" not in adam


def test_at_the_base_width_mup_is_the_standard():
    net, other = (build("mlp", depth=2, width=64, act="relu", input_shape=(40,), classes=10) for _ in range(2))
    initlab.initialize_(net, "mup", act="relu")
    initlab.initialize_(other, "lecun_normal", act="relu")
    assert initlab.fingerprint(net) == initlab.fingerprint(other)
    assert set(rates(net, "mup", "sgd").values()) == {1.0}


def test_mup_on_transformers_brings_its_attention():
    net = build("gpt", depth=1, width=128, act="relu", input_shape=(6,), classes=5, attention_power=1)
    initlab.initialize_(net, "mup", act="relu")
    found = rates(net, "mup", "adam")
    assert found["blocks.0.attention.f.query.weight"] == found["readout.weight"] == 0.5
    assert found["first.weight"] == found["position_embedding"] == found["blocks.0.dense.norm.weight"] == 1


# --- dks and tat ------------------------------------------------------------------------------------------------------

DKS = ["elu", "celu", "selu", "gelu", "gelu_tanh", "silu", "mish", "tanh", "arctan", "sigmoid", "softplus", "erf"]
TAT = [name for name in DKS if name != "selu"]


@pytest.mark.parametrize("depth", [3, 30])
@pytest.mark.parametrize("name", DKS)
def test_dks_meets_its_four_targets(name, depth):
    """By theory's own quadrature, which shares nothing with the solver's grid."""
    act = shape(name, "dks", depth)
    found = moments(act, 1.0)
    assert float(found.square) == pytest.approx(1, abs=1e-5)
    assert float(found.growth) == pytest.approx(1, abs=1e-5)
    assert float(c_map(act, 0.0, 1.0, 1.0)) == pytest.approx(0, abs=1e-5)
    assert float(c_map_slope(act, 1.0, 1.0, 1.0)) ** depth == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("name", TAT)
def test_tat_meets_its_four_targets(name):
    depth, step = 10, 1e-3
    act = shape(name, "tat", depth)
    found = moments(act, 1.0)
    assert float(found.square) == pytest.approx(1, abs=1e-5)
    assert float(found.growth) == pytest.approx(1, abs=1e-5)
    slope = float(c_map_slope(act, 1.0, 1.0, 1.0))
    assert slope == pytest.approx(1, abs=1e-5)
    bend = (slope - float(c_map_slope(act, 1 - step, 1.0, 1.0))) / step
    assert bend * depth == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("eta", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("depth", [50, 200])
def test_tailored_rectifiers_bring_orthogonal_inputs_to_eta(depth, eta):
    act = shape("relu", "tat", depth, eta=eta)
    c = 0.0
    for _ in range(depth):
        c = float(c_map(act, c, 1.0, 1.0))
    assert c == pytest.approx(eta, abs=1e-4)
    plain = 0.0
    for _ in range(depth):
        plain = float(c_map("relu", plain, 1.0, math.sqrt(2)))
    assert plain > 0.98


@pytest.mark.parametrize(("name", "method"), [("tanh", "dks"), ("tanh", "tat"), ("relu", "tat"), ("softplus", "dks")])
def test_a_deep_network_keeps_its_kernel(name, method):
    """Second moments stay 1 and two orthogonal inputs stay apart, where the plain network collapses them."""
    depth, width = 40, 400
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(width, 8, generator=generator)).Q.T * width**0.5

    def ends(act, scheme):
        net = build("mlp", depth=depth, width=width, act=act, input_shape=(width,), classes=width)
        initlab.initialize_(net, scheme, act=act)
        h = net(x).detach()
        q = h.square().mean(1)
        return float(q.mean()), float(((h[:1] * h[1:]).mean(1) / (q[:1] * q[1:]).sqrt()).mean())

    q, c = ends(shape(name, method, depth), method)
    assert q == pytest.approx(1, abs=0.3)
    assert c < (0.93 if name == "relu" else 0.4)
    if name in ("relu", "softplus"):
        assert ends(name, "he_normal")[1] > 0.97


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("linear", "dks", "finds no"),
        ("hardtanh", "tat", "without jumps"),
        ("selu", "tat", "without jumps"),
        ("relu", "dks", "finds no"),
    ],
)
def test_activations_that_cannot_be_shaped_say_so(name, method, words):
    with pytest.raises(Impossible, match=words):
        shape(name, method, 10)


@pytest.mark.parametrize("name", ["tanh", "softplus", "leaky_relu"])
def test_a_shaped_activation_is_like_any_other(name):
    act = shape(name, "tat", 20)
    assert activation(act) is act
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(act.build()(x), act(x))
    assert str(act.build()) != str(shape(name, "tat", 21).build())
    assert set(ACTIVATIONS) & {act.name} == set()
