"""The engine of procedures: what it needs, what it refuses, and what it leaves as it was."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import initlab
from initlab.config.option_files import option_names
from initlab.errors import Impossible, UserError
from initlab.initialize.procedures import PROCEDURES, Procedure, is_procedure, procedure
from initlab.models import MODELS, build
from initlab.schemes import SCHEMES

DATA = [name for name, record in PROCEDURES.items() if "data" in record.needs]
HOMES = {
    "rezero": "resmlp", "skipinit": "resmlp", "fixup": "resmlp", "inverse_depth": "resmlp",
    "gpt2": "gpt", "deepnorm": "gpt", "t_fixup": "gpt", "mimetic": "gpt",
}  # fmt: skip


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def x(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def home(name: str) -> tuple[nn.Module, str]:
    """A model that a procedure suits, and its activation."""
    family = HOMES.get(name, "mlp")
    own = {k: v for k, v in PROCEDURES[name].overrides.items() if k in MODELS[family].options}
    act = initlab.initialize.procedures.shape("tanh", name, 2) if PROCEDURES[name].reshape else "tanh"
    return build(family, depth=2, width=8, act=act, input_shape=(6,), classes=3, **own), act


# --- the records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCEDURES)
def test_records_say_what_they_are(name):
    record = PROCEDURES[name]
    assert record.name == name not in SCHEMES
    assert record.formula
    assert 2015 < record.year < 2026
    assert f" {record.year}, " in record.reference
    assert set(record.needs) <= {"structure", "data", "loss", "architecture", "rates"}
    assert ("architecture" in record.needs) == bool(record.overrides or record.reshape)
    assert ("rates" in record.needs) == (record.multipliers is not None)
    assert ("data" in record.needs) == ("batch" in record.parameters)
    assert record.start.name == record.base == record.parameters.get("base", record.base)


def test_what_fills_single_weights_knows_them_by_name():
    assert {*option_names("init")} - {*SCHEMES, "custom"} == {*PROCEDURES}
    with pytest.raises(UserError, match="looks at a whole module"):
        initlab.initialize.fill_(plain(), "lsuv")


@pytest.mark.parametrize("name", PROCEDURES)
def test_every_procedure_fills_a_model_that_suits_it(name):
    net, act = home(name)
    data = {"inputs": x()} if name in DATA else {}
    own = {"steps": 3} if name in ("metainit", "gradinit") else {}
    rows = initlab.initialize_(net, name, act=act, parameters=own, **data)
    assert rows["name"].tolist() == [key for key, _ in net.named_parameters()]
    assert name in rows["scheme"].tolist()
    for key, row in zip(rows["name"], rows.itertuples(), strict=True):
        parameter = net.get_parameter(key).detach()
        assert row.fingerprint == initlab.fingerprint(parameter)
        assert row.mean == pytest.approx(float(parameter.double().mean()), abs=1e-9)
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("name", PROCEDURES)
def test_the_seed_decides_and_nothing_else(name):
    prints = []
    for seed in (0, 0, 1):
        net, act = home(name)
        torch.manual_seed(len(prints))
        state = torch.get_rng_state()
        own = {"steps": 2} if name in ("metainit", "gradinit") else {}
        initlab.initialize_(net, name, act=act, seed=seed, parameters=own, **({"inputs": x()} if name in DATA else {}))
        assert torch.equal(torch.get_rng_state(), state)
        prints.append(initlab.fingerprint(net))
    assert prints[0] == prints[1] != prints[2]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "arguments", "words"),
    [
        ("lsuv", {}, ["init=lsuv", "inputs=batch"]),
        ("lsuv", {"inputs": x(1)}, ["one sample", "at least 2"]),
        ("lsuv", {"inputs": x() * float("nan")}, ["not finite"]),
        ("lsuv", {"inputs": x(), "parameters": {"tolerence": 1}}, ["init.tolerence", "'tolerance'"]),
        ("lsuv", {"inputs": x(), "parameters": {"tolerance": -1}}, ["init.tolerance=-1", "positive"]),
        ("lsuv", {"inputs": x(), "parameters": {"base": "he_norml"}}, ["init.base=he_norml", "'he_normal'"]),
        ("lsuv", {"inputs": x(), "gain": 2.0}, ["gain=2.0", "whole module"]),
        ("gradinit", {"inputs": x(), "parameters": {"optimizer": "lamb"}}, ["init.optimizer=lamb", "sgd or adam"]),
        ("he_normal", {"inputs": x()}, ["init=he_normal uses no data"]),
        ("gpt2", {"inputs": x(), "roles": {"branch_end": "4"}}, ["init=gpt2 uses no data"]),
        ({"*": "lsuv"}, {"inputs": x()}, ["whole module", "alone"]),
        ("rezero", {}, ["branch_scale", "model.branch=learned", "roles="]),
        ("rezero", {"roles": {"branch_scale": "*.alhpa"}}, ["branch_scale=*.alhpa", "no parameter"]),
        ("fixup", {}, ["branch_end", "roles="]),
        ("fixup", {"roles": {"branch_end": "4"}}, ["'branch'", "roles="]),
        ("fixup", {"roles": {"branch_end": "4", "branch": "0"}}, ["normalization", "model.norm=none"]),
        ("t_fixup", {}, ["role v", "roles="]),
        ("mup", {"roles": {"readout": "4"}}, ["first"]),
        ("deepnorm", {"roles": {"v": "0", "branch_end": "4"}}, ["inside the branches", "'branch'"]),
        ("mimetic", {}, ["role q", "roles="]),
        ("dks", {}, ["act=linear", "initlab.procedures.shape"]),
        ("lsvu", {}, ["init=lsvu is unknown"]),
    ],
    ids=str,
)
def test_refusals_are_one_sentence_and_leave_the_module_as_it_was(scheme, arguments, words):
    net = plain() if scheme != "mup" else nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    if scheme == "mup":
        net, arguments = nn.ModuleDict({"a": nn.Linear(6, 8), "4": nn.Linear(8, 3)}), {"roles": {"readout": "4"}}
    before, modes = values(net), [m.training for m in net.modules()]
    with pytest.raises(UserError) as refusal:
        initlab.initialize_(net, scheme, **arguments)
    text = str(refusal.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    assert unchanged(net, before)
    assert [m.training for m in net.modules()] == modes


def test_an_error_on_the_way_undoes_everything():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.a(x)
            if x.shape[0] > 3:
                raise RuntimeError("no more than three")
            return self.b(x)

    net = Breaks().eval()
    before = values(net)
    with pytest.raises(RuntimeError, match="no more than three"):
        initlab.initialize_(net, "lsuv", inputs=x())
    assert unchanged(net, before)
    assert not any(m.training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("scheme", ["lsuv", "data_dependent", "weight_norm_init", "metainit", "gradinit"])
def test_a_batch_that_the_module_cannot_take(scheme):
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    before = values(net)
    words = r"cannot take a batch of shape 12x4: layer 0 \(Linear\) expects 6 numbers along the last axis and got"
    with pytest.raises(UserError, match=words) as refusal:
        initlab.initialize_(net, scheme, act="tanh", inputs=torch.ones(12, 4))
    assert "cannot be multiplied" in str(refusal.value.__cause__)
    assert all(torch.equal(before[name], value) for name, value in values(net).items())


def test_inputs_that_are_no_tensor_are_named():
    with pytest.raises(UserError, match="inputs is a list without a tensor: give inputs=batch"):
        initlab.initialize_(nn.Linear(6, 3), "lsuv", inputs=[1.0, 2.0])


def test_what_only_looks_leaves_no_trace():
    net = plain().train()
    net[4].weight.requires_grad_(False)
    initlab.initialize_(net, "gradinit", inputs=x(), act="tanh", parameters={"steps": 2})
    assert all(m.training for m in net.modules())
    assert float(net[1].num_batches_tracked) == 0
    assert not net[1].running_mean.any()
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False, True]
    assert all(p.grad is None for p in net.parameters())


def test_meta_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="meta device"):
        initlab.initialize_(plain().to("meta"), "lsuv", inputs=x())


def test_a_loss_and_a_batch_of_the_users_own():
    """Inputs by keyword, an output that is no tensor, and a loss that knows both."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, left, right):
            return {"out": self.b(torch.tanh(self.a(left) + self.a(right)))}

    net = Pair()
    data = {"left": x(), "right": x()}
    rows = initlab.initialize_(net, "metainit", inputs=data, loss=lambda out, _: out["out"].square().mean(),
                               targets=torch.zeros(32), parameters={"steps": 2})  # fmt: skip
    assert rows["scheme"].tolist() == ["metainit", "zeros"] * 2


def test_layers_that_a_pass_does_not_reach_are_named():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    rows = initlab.initialize_(layer, "lsuv", act="relu", inputs=torch.randn(16, 5, 8))
    assert rows.attrs["unreached"] == ["self_attn", "self_attn.out_proj"]
    said = dict(zip(rows["name"], rows["scheme"], strict=True))
    assert (said["self_attn.in_proj_weight"], said["linear1.weight"]) == ("orthogonal", "lsuv")


def test_a_record_of_the_users_own():
    def halve(case):
        for layer in case.layers:
            case.scale(layer.parameter, 0.5)

    mine = Procedure("halved", "he_normal / 2", halve, "mine", 2026)
    net, other = plain(), plain()
    assert is_procedure(mine)
    initlab.initialize_(net, mine, act="tanh")
    initlab.initialize_(other, "he_normal", act="tanh")
    torch.testing.assert_close(net[0].weight, other[0].weight / 2)


def test_a_bound_record_keeps_its_parameters():
    assert procedure("lsuv", tolerance=0.5).parameters["tolerance"] == 0.5
    assert PROCEDURES["lsuv"].parameters["tolerance"] == 0.01
    assert replace(PROCEDURES["lsuv"], name="mine").bind(steps=1).parameters["steps"] == 1
    with pytest.raises(Impossible, match="branch_scale"):
        initlab.initialize_(nn.Linear(2, 2), "rezero")
