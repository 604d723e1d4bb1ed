"""Streams keyed by (seed, name): what the values depend on and what not; fingerprints of values."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from initlab import models
from initlab.errors import UserError
from initlab.initialize import fill_, fingerprint, stream
from initlab.schemes import SCHEMES, scheme
from initlab.system.random_streams import STATE_WORDS


def build(family="mlp", **changed):
    depth = {"mlp": 10, "cnn": 4}[family]
    arguments = {"depth": depth, "width": 16, "act": "relu", "input_shape": (1, 8, 8), "classes": 10} | changed
    return models.build(family, **arguments)


def values(module):
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def test_a_hundred_thousand_keys_give_as_many_streams():
    # Four names × 25,000 seeds. 16 words decide: by chance two agree with probability 10⁵·10⁵/2 · 2⁻⁵¹².
    states = {
        stream(seed, name).get_state().numpy()[24 : 24 + 16 * 8].tobytes()
        for name in ("hidden.0.weight", "hidden.1.weight", "hidden.10.weight", "readout.weight")
        for seed in range(25_000)
    }
    assert len(states) == 100_000


def test_every_word_of_the_state_depends_on_the_key():
    first, second = (stream(seed, "w").get_state().view(torch.int64)[3 : 3 + STATE_WORDS] for seed in (0, 1))
    assert bool((first != second).all())
    assert 2**31 < int(first.max()) < 2**32


def test_a_stream_draws_like_the_reference_twister():
    # numpy's MT19937 from the same words draws the same integers; torch keeps the low bits of each.
    generator = stream(3, "x")
    words = generator.get_state().view(torch.int64)[3 : 3 + STATE_WORDS].numpy().astype(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": STATE_WORDS}}
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 2**16, generator=generator)
    assert drawn.tolist() == [value % 2**16 for value in twister.random_raw(2000).tolist()]


@pytest.mark.parametrize("seed", [1.0, "0", None, True, -1, 2**63, torch.tensor(1.5), torch.tensor([1, 2])])
def test_a_seed_is_a_whole_number(seed):
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    nn.init.constant_(net[0].weight, 3.0)
    before = values(net)
    with pytest.raises(UserError, match="must be a whole number"):
        fill_(net, "he_normal", seed=seed)
    assert all(torch.equal(before[k], v) for k, v in values(net).items())


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_stay_when_the_net_grows_or_gains_norm_and_dropout(name):
    family = "cnn" if SCHEMES[name].dense_counterpart else "mlp"
    small = build(family, depth=10)
    fill_(small, name, act="relu")
    # AutoInit looks at dropout: it makes up for the noise that it adds
    dropout = {} if SCHEMES[name].derived == "moments" else {"dropout": 0.5}
    for changed in ({"depth": 30}, {"norm": "batch"}, {"norm": "layer", **dropout}):
        net = build(family, **{"depth": 10, **changed})
        fill_(net, name, act="relu")
        other = values(net)
        for key, value in values(small).items():
            assert not key.endswith("weight") or torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", SCHEMES)
def test_global_state_and_threads_do_not_matter(name):
    torch.manual_seed(1)
    net = build("cnn", depth=2, width=64)
    rows = fill_(net, name, act="relu", seed=5)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    state = torch.get_rng_state()
    try:
        again = fill_(net, name, act="relu", seed=5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert rows.fingerprint.tolist() == again.fingerprint.tolist()
    assert torch.equal(state, torch.get_rng_state())


def test_draws_are_made_on_one_thread():
    # LAPACK's and reductions' rounding may depend on the number of threads, on some machines and sizes.
    seen = []

    def look(weight, **_):
        seen.append(torch.get_num_threads())
        weight.zero_()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fill_(nn.Linear(2, 2), scheme("custom", target=look))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]


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
    fill_(net, "he_normal")
    fill_(wrap(other), "he_normal")
    assert fingerprint(net) == fingerprint(other) == fingerprint(wrap(other))


def test_the_dtype_rounds_the_same_draws():
    net, half = build(), build().bfloat16()
    fill_(net, "glorot_uniform")
    fill_(half, "glorot_uniform")
    assert all(torch.equal(v.bfloat16(), half.get_parameter(k)) for k, v in values(net).items())


def test_fingerprints_identify_values():
    net = build()
    fill_(net, "he_normal")
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


KNOWN = "7d61f81f31570a4a"
