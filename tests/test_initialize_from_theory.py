"""Schemes whose scale theory derives: critical, critical_orthogonal, autoinit; what they give, predict and refuse."""

import math

import pytest
import torch
from torch import nn

import initlab
from initlab import models
from initlab.activations import ACTIVATIONS
from initlab.config.grid import compose_grid
from initlab.errors import Impossible, UserError
from initlab.experiment.build import config_refusal as impossible_cell
from initlab.initialize import fill_, scheme_refusal
from initlab.prediction import predict
from initlab.theory import critical, default_critical, doubly_critical, gains

CRITICAL = ["critical", "critical_orthogonal"]
WITHOUT = ["softplus"]
SHAPES = {
    "mlp": {"depth": 4, "width": 200, "input_shape": (300,)},
    "cnn": {"depth": 3, "width": 48, "input_shape": (3, 8, 8)},
}


def built(family, act, **changed):
    return models.build(family, act=act, classes=10, **(SHAPES[family] | changed))


def weights(rows):
    return rows[rows.kind.isin(["dense", "conv"])]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("act", ["tanh", "relu", "gelu", "sigmoid", "selu"])
@pytest.mark.parametrize("name", CRITICAL)
def test_every_layer_gets_the_critical_sigmas(name, act, family):
    rows = fill_(built(family, act), name, act=act)
    point = default_critical(act)
    found = weights(rows)
    sigma = found.promised_std * found.fan_in.astype(float) ** 0.5
    assert sigma.tolist() == pytest.approx([point.sigma_w] * len(found), rel=1e-12)
    biases = rows[rows.kind == "bias"]
    assert biases.promised_std.tolist() == pytest.approx([point.sigma_b] * len(biases), rel=1e-12)
    # Var of an empirical std is σ²/2N; 5 of these for each of at most 200 weights in the file.
    drawn = found[found.scheme == "critical"]
    for row in drawn.itertuples():
        size = math.prod(map(int, row.shape.split("x")))
        assert row.std == pytest.approx(row.promised_std, rel=6 / math.sqrt(2 * size))


@pytest.mark.parametrize("name", CRITICAL)
@pytest.mark.parametrize("act", [n for n in ACTIVATIONS if n not in WITHOUT])
def test_the_forecast_of_a_critical_network_is_chi_1_of_one(act, name):
    frame = predict(act, name, depth=6, width=[64, 96, 64, 80, 64, 64])
    assert frame.attrs["sigma_w"] == pytest.approx(default_critical(act).sigma_w, rel=1e-9)
    assert frame.attrs["phase"] == "critical"
    assert frame.attrs["chi_1"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("key", ["sigma_b", "q_star"])
@pytest.mark.parametrize("name", CRITICAL)
def test_a_bias_or_a_fixed_point_may_be_asked_for(name, key):
    point = critical("tanh", **{key: 0.3})
    given = {"sigma_b": 0.3} if key == "sigma_b" else {"parameters": {"q_star": 0.3}}
    rows = fill_(nn.Linear(64, 64), name, act="tanh", **given)
    assert rows.promised_std.tolist() == pytest.approx([point.sigma_w / 8, point.sigma_b], rel=1e-12)


def test_zero_asked_for_is_not_the_same_as_nothing_asked_for():
    asked = fill_(nn.Linear(64, 64), "critical", act="gelu", sigma_b=0.0)
    default = fill_(nn.Linear(64, 64), "critical", act="gelu")
    assert asked.scheme.tolist() == ["critical", "zeros"]
    assert default.promised_std[0] * 8 == pytest.approx(doubly_critical("gelu").sigma_w, rel=1e-12)
    assert default.promised_std[1] == pytest.approx(doubly_critical("gelu").sigma_b, rel=1e-12)


def test_orthogonal_ones_are_orthogonal_and_convolutions_only_look_at_the_centre():
    net = built("cnn", "tanh", depth=2)
    fill_(net, "critical_orthogonal", act="tanh", sigma_b=0.3)
    sigma_w = critical("tanh", sigma_b=0.3).sigma_w
    first, second = (layer.weight.detach().double() for layer in net.hidden)
    gram = second[:, :, 1, 1] @ second[:, :, 1, 1].T
    assert torch.allclose(gram, sigma_w**2 * torch.eye(48, dtype=torch.float64), atol=1e-5)
    second[:, :, 1, 1] = 0
    assert not second.any()
    columns = first[:, :, 1, 1].T @ first[:, :, 1, 1]  # 3 -> 48 channels: columns are stretched so that q is kept
    assert torch.allclose(columns, sigma_w**2 * 16 * torch.eye(3, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("name", [*CRITICAL, "autoinit"])
def test_they_pass_their_own_audit_and_a_wrong_sigma_fails_it(name):
    net = built("mlp", "tanh")
    fill_(net, name, act="tanh")
    assert initlab.audit(net, name, act="tanh").ok.all()
    with torch.no_grad():
        net.hidden[1].weight.mul_(1.2)
    report = initlab.audit(net, name, act="tanh").set_index("name")
    assert not report.ok["hidden.1.weight"]
    assert report.ok.sum() == len(report) - 1


@pytest.mark.parametrize("act", ["relu", "tanh", "sigmoid", "gelu", "softplus", "sin"])
def test_autoinit_is_the_forward_gain_in_a_chain(act):
    rows = weights(fill_(built("mlp", act), "autoinit", act=act))
    sigma = (rows.promised_std * rows.fan_in.astype(float) ** 0.5).tolist()
    assert sigma == pytest.approx([1.0] + [gains(act).forward] * (len(rows) - 1), rel=1e-9)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("act", ["tanh", "relu", "softplus"])
def test_autoinit_keeps_every_layer_of_a_residual_network_at_variance_one(act, norm):
    net = models.build("resmlp", depth=6, width=600, act=act, input_shape=(400,), classes=600, norm=norm)
    fill_(net, "autoinit", act=act, seed=1)
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, out.detach()))
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    net(torch.randn(64, 400, generator=torch.Generator().manual_seed(5)))
    for handle in handles:
        handle.remove()
    squares = {name: float(out.double().square().mean()) for name, out in seen.items()}
    # 600 units, and the streams of 12 layers before: relative error √(2/600) a layer, adding up; 4 of them and more.
    assert squares == pytest.approx(dict.fromkeys(squares, 1.0), rel=0.4)
    assert sum(squares.values()) / len(squares) == pytest.approx(1.0, rel=0.15)


def test_autoinit_through_an_activation_of_a_sum_shifts_it_by_its_mean():
    net = models.build("resnet", depth=1, width=8, act="relu", input_shape=(1, 8, 8), classes=10, norm="none")
    rows = weights(fill_(net, "autoinit", act="relu")).set_index("name")
    sigma = rows.promised_std * rows.fan_in.astype(float) ** 0.5
    # φ(z) of the first layer has mean square ½; its mean 1/√2π and variance ½ − 1/2π go on along the identity
    assert sigma["stages.0.0.conv1.weight"] == pytest.approx(math.sqrt(2), rel=1e-9)
    mean, variance = 1 / math.sqrt(2 * math.pi), 1.5 - 1 / (2 * math.pi)
    z = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    square = float(torch.trapezoid((mean + math.sqrt(variance) * z).relu().square() * density, z))
    assert sigma["stages.1.0.conv1.weight"] == pytest.approx(square**-0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "says", "error"),
    [
        ("critical", {"act": "softplus"}, r"init=critical cannot be: .*softplus.*E\[φ²\] > q E\[φ′²\]", Impossible),
        ("critical_orthogonal", {"act": "softplus"}, "softplus.*no critical point", Impossible),
        ("critical", {"act": "relu", "sigma_b": 0.1}, "scale-free and critical at sigma_b=0 alone", Impossible),
        (
            "critical",
            {"act": "tanh", "sigma_b": 0.3, "parameters": {"q_star": 1.0}},
            r"sigma_b=0.3 and init.q_star=1 cannot both",
            UserError,
        ),
        ("critical", {"act": "tanh", "parameters": {"q_str": 1.0}}, "no parameter init.q_str.*q_star", UserError),
        ("critical", {"act": "tanh", "parameters": {"q_star": -1.0}}, "init.q_star=-1.0 must be positive", UserError),
        ("critical", {"act": "tanh", "sigma_b": -0.1}, "init.sigma_b=-0.1 must be a standard deviation", UserError),
        ("critical", {"act": "tanh", "gain": 1.2}, "has no gain.*σ_w follows from", Impossible),
        ("autoinit", {"act": "tanh", "gain": 1.2}, "has no gain.*follows from what the layers before", Impossible),
    ],
)
def test_what_cannot_be_is_one_sentence(name, arguments, says, error):
    with pytest.raises(error, match=says) as caught:
        fill_(nn.Linear(8, 8), name, **arguments)
    assert "\n" not in str(caught.value)


def test_autoinit_counts_from_anew_behind_a_norm_and_makes_up_for_dropout():
    net = nn.Sequential(
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 8),
    )
    found = weights(fill_(net, "autoinit"))
    assert (found.promised_std * 8**0.5).tolist() == pytest.approx([1, 1, 1], rel=1e-9)  # ½ after ReLU, and ÷ ½
    chain = weights(fill_(built("mlp", "relu", norm="batch"), "autoinit", act="relu"))
    sigma = (chain.promised_std * chain.fan_in.astype(float) ** 0.5).tolist()
    assert sigma == pytest.approx([1.0] + [2**0.5] * 4, rel=1e-9)


def test_autoinit_says_where_it_cannot_follow():
    assert "needs to know how the signal runs through TransformerEncoder" in str(
        scheme_refusal(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False), "autoinit"
        )
    )


def test_in_a_grid_softplus_is_skipped_with_its_reason():
    configs, _ = compose_grid(["init=critical", "act=softplus,tanh", "init.q_star=null,0.1", "sweep.name=x"])
    reasons = [impossible_cell(config) for config in configs]
    assert [reason is None for reason in reasons] == [False, False, True, True]
    assert "no critical point at q_star=0.1" in str(reasons[1])
