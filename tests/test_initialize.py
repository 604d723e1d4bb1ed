"""`initialize_` on whole modules: streams, what each parameter gets, prefixes, ties, fingerprints, refusals."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from initlab import models
from initlab.errors import Impossible, UserError
from initlab.initialize import COLUMNS, fingerprint, impossible, initialize_, plan, request, stream
from initlab.initialize.streams import WORDS
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


# Streams


def test_a_hundred_thousand_keys_give_as_many_streams():
    # Four names × 25,000 seeds. 16 words decide: by chance two agree with probability 10⁵·10⁵/2 · 2⁻⁵¹².
    states = {
        stream(seed, name).get_state().numpy()[24 : 24 + 16 * 8].tobytes()
        for name in ("hidden.0.weight", "hidden.1.weight", "hidden.10.weight", "readout.weight")
        for seed in range(25_000)
    }
    assert len(states) == 100_000


def test_every_word_of_the_state_depends_on_the_key():
    first, second = (stream(seed, "w").get_state().view(torch.int64)[3 : 3 + WORDS] for seed in (0, 1))
    assert bool((first != second).all())
    assert 2**31 < int(first.max()) < 2**32


def test_a_stream_draws_like_the_reference_twister():
    # numpy's MT19937 from the same words draws the same integers; torch keeps the low bits of each.
    generator = stream(3, "x")
    words = generator.get_state().view(torch.int64)[3 : 3 + WORDS].numpy().astype(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": WORDS}}
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 2**16, generator=generator)
    assert drawn.tolist() == [value % 2**16 for value in twister.random_raw(2000).tolist()]


@pytest.mark.parametrize("seed", [1.0, "0", None, True])
def test_a_seed_is_a_whole_number(seed):
    net = nn.Linear(2, 2)
    before = values(net)
    with pytest.raises(UserError, match="must be a whole number"):
        initialize_(net, "he_normal", seed=seed)
    assert all(torch.equal(before[k], v) for k, v in values(net).items())


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_stay_when_the_net_grows_or_gains_norm_and_dropout(name):
    family = "cnn" if SCHEMES[name].conv_only else "mlp"
    small = build(family, depth=10)
    initialize_(small, name, act="relu")
    for changed in ({"depth": 30}, {"norm": "batch"}, {"dropout": 0.5, "norm": "layer"}):
        net = build(family, **{"depth": 10, **changed})
        initialize_(net, name, act="relu")
        other = values(net)
        for key, value in values(small).items():
            assert not key.endswith("weight") or torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", SCHEMES)
def test_global_state_and_threads_do_not_matter(name):
    torch.manual_seed(1)
    net = build("cnn", depth=2, width=64)
    rows = initialize_(net, name, act="relu", seed=5)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    state = torch.get_rng_state()
    try:
        again = initialize_(net, name, act="relu", seed=5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert rows.fingerprint.tolist() == again.fingerprint.tolist()
    assert torch.equal(state, torch.get_rng_state())


def test_another_process_with_more_threads_draws_the_same():
    code = (
        "import torch; from torch import nn; from initlab import initialize_, fingerprint\n"
        "net = nn.Sequential(nn.Linear(300, 200), nn.Conv1d(8, 16, 3))\n"
        "for s in ('orthogonal', 'he_normal', 'sinusoidal', 'nguyen_widrow', 'sparse'):\n"
        "    initialize_(net, s); print(fingerprint(net))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 5


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrappers_change_neither_values_nor_fingerprint(wrap):
    net, other = build(), build()
    initialize_(net, "he_normal")
    initialize_(wrap(other), "he_normal")
    assert fingerprint(net) == fingerprint(other) == fingerprint(wrap(other))


def test_the_dtype_rounds_the_same_draws():
    net, half = build(), build().bfloat16()
    initialize_(net, "glorot_uniform")
    initialize_(half, "glorot_uniform")
    assert all(torch.equal(v.bfloat16(), half.get_parameter(k)) for k, v in values(net).items())


# What each parameter gets


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCHEMES)
def test_every_parameter_of_our_models_is_accounted_for(name, family):
    net = build(family)
    if impossible(net, name, act="relu"):
        with pytest.raises(Impossible):
            initialize_(net, name, act="relu")
        return
    for parameter in net.parameters():
        nn.init.constant_(parameter, math.nan)
    rows = initialize_(net, name, act="relu")
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
    rows = initialize_(net, "he_normal", act="prelu")
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
    rows = initialize_(net, "lecun_normal", sigma_b=0.3).set_index("name")
    # 3,000 elements: the std is within 5 % but once in 10,000.
    assert float(net[0].bias.detach().std()) == pytest.approx(0.3, rel=0.05)
    assert rows.promised_std["0.bias"] == 0.3
    assert float(net[1].bias.detach().abs().max()) == 0


def test_the_scheme_draws_its_own_biases():
    net = nn.Linear(25, 4000)
    initialize_(net, "torch_default")
    assert 0.19 < float(net.bias.detach().abs().max()) <= 0.2
    initialize_(net, "nguyen_widrow")
    beta = 0.7 * 4000 ** (1 / 25)
    assert 0.95 * beta < float(net.bias.detach().abs().max()) <= beta
    with pytest.raises(Impossible, match=r"draws its own biases.*sigma_b=0.1"):
        initialize_(net, "torch_default", sigma_b=0.1)


def test_torch_default_is_what_torch_leaves():
    torch.manual_seed(0)
    layer, drawn = nn.Conv2d(16, 64, 3), nn.Conv2d(16, 64, 3)
    initialize_(drawn, "torch_default")
    for ours, theirs in zip(drawn.parameters(), layer.parameters(), strict=True):
        widest, its_widest = (float(tensor.detach().abs().max()) for tensor in (ours, theirs))
        assert widest == pytest.approx(its_widest, rel=0.05)
        assert widest <= 1 / 12


def test_a_number_replaces_the_gain_in_every_layer_and_derived_gains_where_an_activation_feeds():
    net = build("mlp", depth=3, width=400, act="tanh")
    weights = [f"hidden.{k}.weight" for k in range(3)] + ["readout.weight"]
    promise = {
        gain: initialize_(net, "lecun_normal", act="tanh", gain=gain).set_index("name").promised_std[weights]
        for gain in ("paper", 3.0, "forward", "critical")
    }
    assert (promise[3.0] / promise["paper"]).tolist() == pytest.approx([3] * 4)
    forward = gains("tanh").forward
    assert (promise["forward"] / promise["paper"]).tolist() == pytest.approx([1, forward, forward, 1])
    assert (promise["critical"] / promise["paper"]).tolist() == pytest.approx([1] * 4)


def test_layers_fed_by_a_norm_or_a_stream_get_no_derived_gain():
    net = build("mlp", depth=2, norm="batch", act="tanh")
    fed = {layer.name: layer.fed_by for layer in net.weight_layers}
    rows = initialize_(net, "lecun_normal", act="tanh", gain="forward").set_index("name")
    for name in ("hidden.1",):
        expected = gains("tanh").forward if fed[name] == "activation" else 1.0
        assert rows.promised_std[f"{name}.weight"] * 4 == pytest.approx(expected)
    net.weight_layers = (WeightLayer("hidden.1", "hidden", "norm"),)
    rows = initialize_(net, "lecun_normal", act="tanh", gain="forward").set_index("name")
    assert rows.promised_std["hidden.1.weight"] * 4 == pytest.approx(1)


def test_packed_projections_are_filled_each_with_its_own_fans():
    attention = nn.MultiheadAttention(64, 4)
    rows = initialize_(attention, "glorot_uniform").set_index("name")
    # As one (192, 64) matrix the bound would be √(6/256).
    assert rows.promised_std["in_proj_weight"] == pytest.approx(math.sqrt(2 / 128))
    assert float(attention.in_proj_weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    initialize_(attention, "orthogonal")
    for part in attention.in_proj_weight.detach().chunk(3):
        assert torch.allclose(part @ part.T, torch.eye(64), atol=1e-5)


def test_padding_rows_of_embeddings_stay_zero():
    table = nn.Embedding(10, 4, padding_idx=3)
    initialize_(table, "normal")
    assert (table.weight.detach().norm(dim=1) == 0).tolist() == [row == 3 for row in range(10)]


def test_parameters_are_written_in_place_once_and_keep_their_flags():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    before = [(p.data_ptr(), p.requires_grad, p._version) for p in net.parameters()]
    rows = initialize_(net, "he_normal")
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
    rows = initialize_(net, "he_normal").set_index("name")
    assert rows.scheme["token"] == "left alone"
    assert net.token.tolist() == [5, 5, 5]
    with pytest.raises(UserError, match="token is of a kind initlab does not know"):
        initialize_(net, "he_normal", strict=True)


def test_globs_choose_schemes_and_the_first_match_wins():
    net = build("mlp", depth=2)
    rows = initialize_(net, {"readout.weight": "zeros", "hidden.*": "he_normal"}).set_index("name")
    assert rows.scheme["readout.weight"] == "zeros"
    assert rows.scheme["hidden.1.weight"] == "he_normal"
    assert rows.scheme["readout.bias"] == "left alone"


def test_roles_come_from_the_module_a_sequence_or_the_user():
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]
    rows = initialize_(nn.Sequential(*layers), "he_normal")
    assert rows[rows.kind == "dense"].role.tolist() == ["first", "hidden", "readout"]
    net = nn.ModuleDict({"a": layers[0], "b": layers[2], "c": layers[4]})
    with pytest.raises(Impossible, match="must know which layer comes first"):
        initialize_(net, "siren", act="sin")
    rows = initialize_(net, "siren", act="sin", roles={"first": "a", "readout": ["c"]}).set_index("name")
    assert rows.role[["a.weight", "b.weight", "c.weight"]].tolist() == ["first", "hidden", "readout"]
    assert rows.promised_std["a.weight"] == pytest.approx(1 / 4 / math.sqrt(3))
    assert rows.promised_std["b.weight"] == pytest.approx(math.sqrt(2 / 6) / 30)
    with pytest.raises(UserError, match="first=z matches no weight"):
        initialize_(net, "siren", roles={"first": "z"})


def test_measuring_can_be_switched_off():
    rows = initialize_(nn.Linear(3, 3), "he_normal", measure=False)
    assert rows["mean"].isna().all()
    assert rows["fingerprint"].isna().all()


# Fingerprints


def test_fingerprints_identify_values():
    net = build()
    initialize_(net, "he_normal")
    first = fingerprint(net)
    assert first == fingerprint(dict(net.named_parameters())) == fingerprint(dict(reversed([*net.named_parameters()])))
    with torch.no_grad():
        net.readout.bias[0] += 1e-7
    assert fingerprint(net) != first
    assert fingerprint({"a": torch.zeros(2), "b": torch.ones(2)}) != fingerprint(
        {"a": torch.ones(2), "b": torch.zeros(2)}
    )


def test_fingerprints_do_not_depend_on_layout():
    weight = torch.randn(4, 3, 5, 5)
    assert fingerprint(weight) == fingerprint(weight.contiguous(memory_format=torch.channels_last))
    assert fingerprint(weight) == fingerprint(weight.clone().as_strided((4, 3, 5, 5), (75, 25, 5, 1)))


def test_the_fingerprint_of_known_values_is_known():
    # The format is part of the record of every run: it changes with a new version only, on purpose.
    assert fingerprint({"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}) == KNOWN


KNOWN = "4fe37aceb4d3cbde"


# Refusals: one sentence, and the module as it was


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
        initialize_(net, **({"scheme": "he_normal"} | arguments))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), "1.weight is lazy.*pass one batch"),
        (parametrizations.weight_norm(nn.Linear(2, 2)), "belongs to a parametrized weight"),
        (nn.Linear(2, 2, device="meta"), "weight is on the meta device: call module.to_empty"),
    ],
)
def test_modules_that_cannot_be_written_are_refused(module, words):
    with pytest.raises(UserError, match=words):
        initialize_(module, "he_normal")


def test_what_is_impossible_can_be_asked_without_memory():
    with torch.device("meta"):
        mlp, cnn, narrowing = nn.Linear(3, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)
    assert impossible(mlp, "he_normal") is None
    assert "needs convolutions" in impossible(mlp, "dirac")
    assert impossible(cnn, "delta_orthogonal") is None
    assert "4 out of 8 in" in impossible(narrowing, "delta_orthogonal")
    assert "has no gain" in impossible(mlp, "zeros", gain=2.0)
    assert "init.gain=critical cannot be" in impossible(mlp, "he_normal", act="softplus", gain="critical")
    with pytest.raises(UserError, match="is unknown"):
        impossible(mlp, "he_norml")


def test_dense_layers_of_a_convolutional_net_get_the_dense_counterpart():
    net = build("cnn")
    initialize_(net, "delta_orthogonal")
    rows = net.readout.weight.detach()
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


def test_a_plan_writes_nothing():
    net = build()
    before = fingerprint(net)
    tasks = plan(net, request("he_normal", act="relu"))
    assert fingerprint(net) == before
    assert len(tasks) == len(list(net.parameters()))
