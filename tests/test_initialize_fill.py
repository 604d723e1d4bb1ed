"""`fill_` on whole modules: what each parameter gets, roles and gains, refusals."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from initlab import models
from initlab.errors import Impossible, UserError
from initlab.initialize import COLUMNS, fill_, fingerprint, plan, request, scheme_refusal
from initlab.models import WeightLayer
from initlab.schemes import SCHEMES
from initlab.theory import gains

FAMILIES = {
    "mlp": {"depth": 10, "width": 16},
    "cnn": {"depth": 4, "width": 16},
    "resmlp": {"depth": 3, "width": 16},
    "resnet": {"depth": 1, "width": 16},
}


def build(name="mlp", **changed):
    arguments = {"act": "relu", "input_shape": (1, 8, 8), "classes": 10} | FAMILIES[name] | changed
    return models.build(name, **arguments)


def values(module):
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCHEMES)
def test_every_parameter_of_our_models_is_accounted_for(name, family):
    net = build(family)
    if scheme_refusal(net, name, act="relu"):
        with pytest.raises(Impossible):
            fill_(net, name, act="relu")
        return
    for parameter in net.parameters():
        nn.init.constant_(parameter, math.nan)
    rows = fill_(net, name, act="relu")
    assert tuple(rows.columns) == COLUMNS
    assert rows.name.tolist() == [n for n, _ in net.named_parameters()]
    assert not any(bool(p.isnan().any()) for p in net.parameters())
    assert "left alone" not in rows.scheme.tolist()
    weights = rows[rows.kind.isin(["dense", "conv"])]
    assert set(weights.scheme) == {name}
    assert (weights.role != "").all()


def test_biases_norms_and_activations_get_their_own_rule():
    net = build("mlp", norm="batch", act="prelu")
    for parameter in net.parameters():
        nn.init.constant_(parameter, 7.0)
    net(torch.randn(4, 1, 8, 8))
    rows = fill_(net, "he_normal", act="prelu")
    by_kind = {kind: set(group.scheme) for kind, group in rows.groupby("kind")}
    assert by_kind == {
        "dense": {"he_normal"},
        "bias": {"zeros"},
        "norm_scale": {"ones"},
        "norm_shift": {"zeros"},
        "activation": {"constant"},
    }
    for name, parameter in net.named_parameters():
        start = {"norms": 1.0, "acts": 0.25}.get(name.split(".")[0], 0.0)
        if not (name.startswith(("hidden", "readout")) and name.endswith("weight")):
            expected = 0.0 if name.endswith("bias") else start
            assert bool((parameter == expected).all()), name
    assert float(net.norms[0].running_mean.abs().max()) == 0
    assert int(net.norms[0].num_batches_tracked) == 0


def test_sigma_b_is_the_std_of_biases_and_of_nothing_else():
    net = nn.Sequential(nn.Linear(10, 3000), nn.BatchNorm1d(3000))
    rows = fill_(net, "lecun_normal", sigma_b=0.3).set_index("name")
    # 3,000 elements: the std is within 5 % but once in 10,000.
    assert float(net[0].bias.detach().std()) == pytest.approx(0.3, rel=0.05)
    assert rows.promised_std["0.bias"] == 0.3
    assert float(net[1].bias.detach().abs().max()) == 0


def test_the_scheme_draws_its_own_biases():
    net = nn.Linear(25, 4000)
    fill_(net, "torch_default")
    assert 0.19 < float(net.bias.detach().abs().max()) <= 0.2
    fill_(net, "nguyen_widrow")
    beta = 0.7 * 4000 ** (1 / 25)
    assert 0.95 * beta < float(net.bias.detach().abs().max()) <= beta
    with pytest.raises(Impossible, match=r"draws its own biases.*sigma_b=0.1"):
        fill_(net, "torch_default", sigma_b=0.1)


def test_torch_default_is_what_torch_leaves():
    torch.manual_seed(0)
    layer, drawn = nn.Conv2d(16, 64, 3), nn.Conv2d(16, 64, 3)
    fill_(drawn, "torch_default")
    for ours, theirs in zip(drawn.parameters(), layer.parameters(), strict=True):
        widest, its_widest = (float(tensor.detach().abs().max()) for tensor in (ours, theirs))
        assert widest == pytest.approx(its_widest, rel=0.05)
        assert widest <= 1 / 12


def test_a_number_replaces_the_gain_in_every_layer_and_derived_gains_where_an_activation_feeds():
    net = build("mlp", depth=3, width=400, act="tanh")
    weights = [f"hidden.{k}.weight" for k in range(3)] + ["readout.weight"]
    promise = {
        gain: fill_(net, "lecun_normal", act="tanh", gain=gain).set_index("name").promised_std[weights]
        for gain in ("paper", 3.0, "forward", "critical")
    }
    assert (promise[3.0] / promise["paper"]).tolist() == pytest.approx([3] * 4)
    forward = gains("tanh").forward
    assert (promise["forward"] / promise["paper"]).tolist() == pytest.approx([1, forward, forward, 1])
    assert (promise["critical"] / promise["paper"]).tolist() == pytest.approx([1] * 4)


def test_layers_fed_by_a_norm_or_a_stream_get_no_derived_gain():
    net = build("mlp", depth=2, norm="batch", act="tanh")
    fed = {layer.name: layer.fed_by for layer in net.weight_layers}
    rows = fill_(net, "lecun_normal", act="tanh", gain="forward").set_index("name")
    for name in ("hidden.1",):
        expected = gains("tanh").forward if fed[name] == "activation" else 1.0
        assert rows.promised_std[f"{name}.weight"] * 4 == pytest.approx(expected)
    net.weight_layers = (WeightLayer("hidden.1", "hidden", "norm"),)
    rows = fill_(net, "lecun_normal", act="tanh", gain="forward").set_index("name")
    assert rows.promised_std["hidden.1.weight"] * 4 == pytest.approx(1)


def test_packed_projections_are_filled_each_with_its_own_fans():
    attention = nn.MultiheadAttention(64, 4)
    rows = fill_(attention, "glorot_uniform").set_index("name")
    # As one (192, 64) matrix the bound would be √(6/256).
    assert rows.promised_std["in_proj_weight"] == pytest.approx(math.sqrt(2 / 128))
    assert float(attention.in_proj_weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    fill_(attention, "orthogonal")
    for part in attention.in_proj_weight.detach().chunk(3):
        assert torch.allclose(part @ part.T, torch.eye(64), atol=1e-5)


def test_padding_rows_of_embeddings_stay_zero():
    table = nn.Embedding(10, 4, padding_idx=3)
    fill_(table, "normal")
    assert (table.weight.detach().norm(dim=1) == 0).tolist() == [row == 3 for row in range(10)]


def test_parameters_are_written_in_place_once_and_keep_their_flags():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    before = [(p.data_ptr(), p.requires_grad, p._version) for p in net.parameters()]
    rows = fill_(net, "he_normal")
    after = [(p.data_ptr(), p.requires_grad, p._version) for p in net.parameters()]
    assert rows.name.tolist() == ["0.weight", "0.bias", "1.bias"]
    assert [a[:2] for a in after] == [b[:2] for b in before]
    assert [a[2] - b[2] for a, b in zip(after, before, strict=True)] == [1, 1, 1]
    assert all(p.grad_fn is None for p in net.parameters())


def test_unknown_kinds_are_left_alone_and_listed_or_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.token = nn.Parameter(torch.full((3,), 5.0))

    net = Own()
    rows = fill_(net, "he_normal").set_index("name")
    assert rows.scheme["token"] == "left alone"
    assert net.token.tolist() == [5, 5, 5]
    with pytest.raises(UserError, match="token is of a kind initlab does not know"):
        fill_(net, "he_normal", strict=True)


def test_globs_choose_schemes_and_the_first_match_wins():
    net = build("mlp", depth=2)
    rows = fill_(net, {"readout.weight": "zeros", "hidden.*": "he_normal"}).set_index("name")
    assert rows.scheme["readout.weight"] == "zeros"
    assert rows.scheme["hidden.1.weight"] == "he_normal"
    assert rows.scheme["readout.bias"] == "no rule"


def test_roles_come_from_the_module_a_sequence_or_the_user():
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]
    rows = fill_(nn.Sequential(*layers), "he_normal")
    assert rows[rows.kind == "dense"].role.tolist() == ["first", "hidden", "readout"]
    net = nn.ModuleDict({"a": layers[0], "b": layers[2], "c": layers[4]})
    with pytest.raises(Impossible, match="must know which layer comes first"):
        fill_(net, "siren", act="sin")
    rows = fill_(net, "siren", act="sin", roles={"first": "a", "readout": ["c"]}).set_index("name")
    assert rows.role[["a.weight", "b.weight", "c.weight"]].tolist() == ["first", "hidden", "readout"]
    assert rows.promised_std["a.weight"] == pytest.approx(1 / 4 / math.sqrt(3))
    assert rows.promised_std["b.weight"] == pytest.approx(math.sqrt(2 / 6) / 30)
    with pytest.raises(UserError, match="first=z matches no weight"):
        fill_(net, "siren", roles={"first": "z"})
    with pytest.raises(UserError, match=r"redout is not a role of a layer\. Did you mean 'readout'"):
        fill_(net, "siren", roles={"first": "a", "redout": "c"})
    assert "somewhere" in fill_(net, "siren", roles={"first": "a", "somewhere": "c"}).role.tolist()


def test_measuring_can_be_switched_off():
    rows = fill_(nn.Linear(3, 3), "he_normal", measure=False)
    assert rows["mean"].isna().all()
    assert rows["fingerprint"].isna().all()


REFUSED = {
    "unknown scheme": ({"scheme": "he_norml"}, "init=he_norml is unknown"),
    "unknown key": ({"parameters": {"moed": 1}}, "no parameter init.moed"),
    "gain 0": ({"gain": 0}, "init.gain=0 must be a positive number"),
    "gain nan": ({"gain": float("nan")}, "init.gain=nan must be a positive number"),
    "gain word": ({"gain": "froward"}, "init.gain=froward must be a number or one of .*'forward'"),
    "sigma_b": ({"sigma_b": -1}, "init.sigma_b=-1 must be a standard deviation"),
    "act": ({"act": "rleu"}, "act=rleu is unknown"),
    "dirac": ({"scheme": "dirac"}, "init=dirac needs convolutions"),
    "delta": ({"scheme": "delta_orthogonal"}, "init=delta_orthogonal needs convolutions"),
    "odd": ({"scheme": "looks_linear"}, "init=looks_linear cannot fill 0.weight: it mirrors units in pairs"),
    "gainless": ({"scheme": "normal", "gain": "forward"}, "init=normal has no gain.*set init.std"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_the_module_as_it_was(case):
    arguments, words = REFUSED[case]
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2))
    net(torch.randn(8, 4))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=words) as caught:
        fill_(net, **({"scheme": "he_normal"} | arguments))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), "1.weight cannot be initialized: it is lazy.*one batch"),
        (parametrizations.spectral_norm(nn.Linear(2, 2)), "weight cannot be initialized: spectral_norm divides"),
    ],
)
def test_modules_that_cannot_be_written_are_refused(module, words):
    with pytest.raises(UserError, match=words):
        fill_(module, "he_normal")


def test_what_is_impossible_can_be_asked_without_memory():
    with torch.device("meta"):
        mlp, cnn, narrowing = nn.Linear(3, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)
    assert scheme_refusal(mlp, "he_normal") is None
    assert "needs convolutions" in scheme_refusal(mlp, "dirac")
    assert scheme_refusal(cnn, "delta_orthogonal") is None
    assert "4 out of 8 in" in scheme_refusal(narrowing, "delta_orthogonal")
    assert "has no gain" in scheme_refusal(mlp, "zeros", gain=2.0)
    assert "init.gain=critical cannot be" in scheme_refusal(mlp, "he_normal", act="softplus", gain="critical")
    with pytest.raises(UserError, match="is unknown"):
        scheme_refusal(mlp, "he_norml")


def test_dense_layers_of_a_convolutional_net_get_the_dense_counterpart():
    net = build("cnn")
    fill_(net, "delta_orthogonal")
    rows = net.readout.weight.detach()
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


def test_a_pattern_without_any_wave_is_impossible():
    assert "every sinusoid of 2 units over 1 inputs is zero" in scheme_refusal(nn.Linear(1, 2), "sinusoidal")


def test_a_plan_writes_nothing():
    net = build()
    before = fingerprint(net)
    tasks = plan(net, request("he_normal", act="relu"))
    assert fingerprint(net) == before
    assert len(tasks) == len(list(net.parameters()))
