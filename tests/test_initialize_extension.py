"""One row adds a data set or a procedure from outside the package: a user's file, a record in the registry."""

import math

import pytest
import torch
from torch import nn

import initlab
from initlab.config.compose import compose_config
from initlab.data import load_dataset
from initlab.errors import Impossible, UserError
from initlab.initialize.procedures import PROCEDURES, Procedure, procedure, procedure_refusal, rates

MINE = """
import torch

def rings(samples=200, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    angle = 6.28 * torch.rand(samples, generator=generator)
    y = torch.arange(samples) % 2
    radius = 1 + y + noise * torch.randn(samples, generator=generator)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return (x, y), (x[:50], y[:50])
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "rings_home.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "rings_home:rings"


def test_a_data_set_of_the_users_own_passes_the_checks_and_loads(mine):
    (config,) = [compose_config([f"data={mine}", "+data.samples=120"])]
    assert config.data["target"] == mine
    data = load_dataset(mine, samples=120)
    assert (data.task, data.classes, data.input_shape, len(data.train_x)) == ("classification", 2, (2,), 108)
    assert initlab.data.load is load_dataset


def test_a_parameter_that_the_function_does_not_take_is_refused(mine):
    with pytest.raises(UserError, match=r"cannot be called with rings: .*'rings'"):
        load_dataset(mine, rings=3)


def halve(context):
    for layer in context.layers_of_role("hidden"):
        context.scale(layer.parameter, context.parameters["share"])


def need_two_layers(context):
    return None if len(context.layers) > 1 else "halves hidden layers, and the module has none"


HALVED = Procedure(
    "halved",
    "he_normal, hidden layers · share",
    halve,
    "mine 2026, Half a Width",
    2026,
    "he_normal",
    {"share": 0.5},
    possible=need_two_layers,
    multipliers=lambda context, optimizer: {layer.parameter.name: 2.0 for layer in context.layers},
)


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setitem(PROCEDURES, "halved", HALVED)


def network():
    return nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 4))


def test_a_procedure_of_the_users_own_fills_checks_and_audits(halved):
    net = network()
    rows = initlab.initialize_(net, "halved", act="relu").set_index("name")
    assert rows.scheme[["0.weight", "2.weight", "2.bias"]].tolist() == ["he_normal", "halved", "zeros"]
    assert rows.fingerprint["2.weight"] == initlab.fingerprint(net[2].weight)
    initlab.testing.assert_initialized(net, "he_normal", act="relu", skip="2.weight")
    initlab.testing.assert_initialized(net, "he_normal", act="relu", gain=math.sqrt(2) / 2, only="2.*")
    assert rates(net, "halved", "adam") == {"0.weight": 2.0, "2.weight": 2.0, "4.weight": 2.0}


def test_it_is_refused_like_any_other(halved):
    assert procedure("halved", share=0.25).parameters == {"share": 0.25}
    with pytest.raises(UserError, match=r"no parameter init.shrae.*'share'"):
        procedure("halved", shrae=1)
    with pytest.raises(UserError, match=r"init\.share=-1 must be a positive number for init=halved"):
        initlab.initialize_(network(), "halved", parameters={"share": -1})
    assert procedure_refusal(nn.Linear(2, 2), "halved") == "init=halved halves hidden layers, and the module has none."
    with pytest.raises(Impossible, match="the module has none"):
        initlab.initialize_(nn.Linear(2, 2), "halved")
    with pytest.raises(UserError, match="use it alone"):
        initlab.initialize_(network(), {"*": "halved"})


def test_the_same_name_means_the_same_initialization_everywhere():
    assert initlab.initialize.initialize_ is initlab.initialize_
    first, second = network(), network()
    initlab.initialize_(first, "he_normal", seed=3, only="0.*")
    initlab.initialize.initialize_(second, "he_normal", seed=3, only="0.*")
    assert torch.equal(first[0].weight, second[0].weight)
