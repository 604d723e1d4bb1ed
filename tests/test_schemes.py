"""Every scheme of the registry keeps the law it promises, on every kind of weight; names, parameters and gains."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import nn

from initlab.activations import ACTIVATIONS
from initlab.errors import Impossible
from initlab.initialize import fill_, plan, request, scheme_refusal, stream
from initlab.inspection import Fans
from initlab.schemes import DISTRIBUTIONS, MODES, SCHEMES, scheme
from initlab.schemes.law_checks import independence_p_value, violations

MODULES = {
    "wide": lambda: nn.Linear(160, 48),
    "tall": lambda: nn.Linear(48, 160),
    "square": lambda: nn.Linear(64, 64),
    "conv1d": lambda: nn.Conv1d(16, 64, 5),
    "conv2d": lambda: nn.Conv2d(24, 48, 3),
    "conv2d narrowing": lambda: nn.Conv2d(48, 24, 3),
    "conv3d": lambda: nn.Conv3d(8, 16, 3),
    "dilated": lambda: nn.Conv2d(24, 48, 3, dilation=2),
    "grouped": lambda: nn.Conv2d(32, 64, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(128, 128, 3, groups=128),
    "transposed": lambda: nn.ConvTranspose2d(16, 48, 3, stride=2),
    "transposed grouped": lambda: nn.ConvTranspose1d(32, 64, 4, groups=4),
    "attention": lambda: nn.MultiheadAttention(48, 4),
    "recurrent": lambda: nn.LSTM(40, 24),
    "embedding": lambda: nn.Embedding(300, 32),
}

# 33 schemes × 15 modules × at most 4 tensors of at most 128 blocks: at 1e-9 each, fewer than 1 run in 10,000 fails.
ALPHA = 1e-9


def broken(task) -> list[str]:
    """Name the checks that a filled parameter fails; elements of one law are pooled."""
    laws, blocks, tensor = task.promised_laws(), task.parameter.blocks, task.parameter.tensor.detach()
    pooled = all(law.cdf is not None and law.free is None for law in laws)
    if pooled and len({(law.distribution, law.mean, law.variance) for law in laws}) == 1:
        return violations(tensor, laws[0], ALPHA)
    views = [block.view(tensor) for block in blocks] if len(laws) == len(blocks) else [tensor]
    return [name for view, law in zip(views, laws, strict=True) for name in violations(view, law, ALPHA)]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_keeps_its_law_on_every_kind_of_weight(name, kind):
    module = MODULES[kind]()
    roles = {"hidden": "*"}
    if reason := scheme_refusal(module, name, act="relu", roles=roles):
        knows_why = SCHEMES[name].dense_counterpart or SCHEMES[name].structure is not None or SCHEMES[name].derived
        assert knows_why, reason
        with pytest.raises(Impossible):
            fill_(module, name, act="relu", roles=roles)
        return
    fill_(module, name, act="relu", seed=1, roles=roles)
    for task in plan(module, request(name, act="relu", roles=roles)):
        assert broken(task) == [], task.parameter.name


@pytest.mark.parametrize("role", ["first", "hidden", "readout", "branch_end"])
@pytest.mark.parametrize("name", [n for n, s in SCHEMES.items() if "role" in s.needs])
@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (32, 16, 3, 3)], ids=str)
def test_every_role_keeps_its_law(name, role, shape):
    taps = math.prod(shape[2:])
    fans, record = Fans(shape[1] * taps, shape[0] * taps, taps), SCHEMES[name]
    gain = record.gain(ACTIVATIONS["sin"], fans, role)
    weight = record.fill_(torch.empty(shape), fans=fans, gain=gain, role=role, generator=stream(0, "w"))
    assert violations(weight, record.law(fans, gain, role, shape), ALPHA) == []


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_engine_keeps_its_law_everywhere(distribution, mode, scale):
    record = scheme("variance_scaling", scale=scale, mode=mode, distribution=distribution)
    fans = Fans(200, 50)
    weight = record.fill_(torch.empty(50, 200), fans=fans, gain=1.5, generator=stream(0, mode))
    n = {"fan_in": 200, "fan_out": 50, "fan_avg": 125, "fan_geo_avg": 100}[mode]
    law = record.law(fans, 1.5)
    assert law.variance == pytest.approx(1.5**2 * scale / n)
    assert violations(weight, law, ALPHA) == []


@pytest.mark.parametrize("name", SCHEMES)
def test_two_layers_are_independent_and_a_seed_repeats(name):
    record, fans = SCHEMES[name], Fans(90, 60)
    if record.law(fans).deterministic:
        same = [record.fill_(torch.empty(60, 90), fans=fans, generator=stream(seed, "w")) for seed in (0, 1)]
        assert torch.equal(*same)
        return
    a, again, b, c = (
        record.fill_(torch.empty(60, 90), fans=fans, generator=stream(*key))
        for key in ((0, "hidden.0"), (0, "hidden.0"), (0, "hidden.1"), (1, "hidden.0"))
    )
    assert torch.equal(a, again)
    assert independence_p_value(a, b) > ALPHA
    assert independence_p_value(a, c) > ALPHA
    assert not torch.equal(a, b)


# Var[W] of an (m, n) weight under ReLU, written down independently of the package.
VARIANCES = {
    "zeros": lambda n, m: 0,
    "ones": lambda n, m: 0,
    "constant": lambda n, m: 0,
    "uniform": lambda n, m: 1 / 12,
    "normal": lambda n, m: 1,
    "naive_normal": lambda n, m: 1e-4,
    "truncated_normal": lambda n, m: stats.truncnorm(-2, 2).var(),
    "variance_scaling": lambda n, m: 1 / n,
    "lecun_uniform": lambda n, m: 1 / n,
    "lecun_normal": lambda n, m: 1 / n,
    "glorot_uniform": lambda n, m: 2 / (n + m),
    "glorot_normal": lambda n, m: 2 / (n + m),
    "he_uniform": lambda n, m: 2 / n,
    "he_normal": lambda n, m: 2 / n,
    "uniform_rule": lambda n, m: 1 / (3 * n),
    "normal_rule": lambda n, m: 1 / n,
    "torch_default": lambda n, m: 1 / (3 * n),
    "random_walk": lambda n, m: 2 * math.exp(2.4 / (n - 2.4)) / n,
    "siren": lambda n, m: 2 / n,
    "orthogonal": lambda n, m: 1 / max(n, m),
    "scaled_orthogonal": lambda n, m: 1 / n,
    "delta_orthogonal": lambda n, m: 1 / max(n, m),
    "looks_linear": lambda n, m: 2 / max(n, m),
    "identity": lambda n, m: 1 / max(n, m) - 1 / max(n, m) ** 2,
    "dirac": lambda n, m: 1 / max(n, m) - 1 / max(n, m) ** 2,
    "sinusoidal": lambda n, m: 2 / (n + m),
    "sparse": lambda n, m: 15 / n,
    "nguyen_widrow": lambda n, m: (0.7 * m ** (1 / n)) ** 2 / n,
}


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize(("n", "m"), [(200, 60), (60, 200)])
def test_the_promised_variance_is_the_formula(name, n, m):
    fans = Fans(n, m)
    law = SCHEMES[name].law(fans, SCHEMES[name].gain(ACTIVATIONS["relu"], fans))
    assert law.variance == pytest.approx(VARIANCES[name](n, m), rel=1e-12)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (48, 16, 3, 3)], ids=str)
def test_a_law_agrees_with_itself_and_a_pattern_with_its_moments(name, shape):
    taps = math.prod(shape[2:])
    fans, record = Fans(shape[1] * taps, shape[0] * taps, taps), SCHEMES[name]
    law = record.law(fans, 1.0, "hidden", shape)
    if law.deterministic:
        weight = record.fill_(torch.empty(shape), fans=fans, generator=stream(0, "w")).double()
        assert float(weight.mean()) == pytest.approx(law.mean, abs=1e-7)
        assert float(weight.var(correction=0)) == pytest.approx(law.variance, rel=1e-5, abs=1e-12)
    elif law.cdf is not None and law.free is None:
        low, high = (max(law.support[0], -40 * law.std), min(law.support[1], 40 * law.std))
        x = np.linspace(low, high, 200_001)
        mass, middle = np.diff(law.cdf(x)), (x[1:] + x[:-1]) / 2
        mean = mass @ middle
        second, fourth = (mass @ (middle - mean) ** k for k in (2, 4))
        assert mass.sum() == pytest.approx(1)
        assert (mean, second) == (pytest.approx(law.mean, abs=1e-9), pytest.approx(law.variance, rel=1e-6))
        assert fourth / second**2 == pytest.approx(law.kurtosis, rel=1e-5)


@pytest.mark.parametrize("name", [n for n, s in SCHEMES.items() if s.own_gain is not None])
def test_a_gain_is_a_factor_on_the_std(name):
    fans = Fans(120, 80)
    one, other = (SCHEMES[name].law(fans, gain, "hidden", (80, 120)) for gain in (1.0, 1.7))
    assert other.variance == pytest.approx(1.7**2 * one.variance)


@pytest.mark.parametrize("name", [n for n, s in SCHEMES.items() if s.own_gain is None])
def test_a_gain_without_meaning_is_refused_with_the_remedy(name):
    with pytest.raises(Impossible, match=r"has no gain.*init\."):
        fill_(nn.Linear(2, 2), name, gain=2.0)


def test_own_gains():
    fans, he = Fans(100, 50), SCHEMES["he_normal"]
    assert he.gain(ACTIVATIONS["linear"], fans) == pytest.approx(math.sqrt(2))
    assert he.gain(ACTIVATIONS["leaky_relu"].bind(negative_slope=0.5), fans) == pytest.approx(math.sqrt(1.6))
    assert he.gain(ACTIVATIONS["tanh"], fans) == pytest.approx(math.sqrt(2))
    assert SCHEMES["glorot_normal"].gain(ACTIVATIONS["relu"], fans) == 1
    assert SCHEMES["orthogonal"].gain(ACTIVATIONS["relu"], fans) == 1
    siren, sine = SCHEMES["siren"], ACTIVATIONS["sin"]
    assert siren.law(fans, siren.gain(sine, fans)).support[1] == pytest.approx(math.sqrt(6 / 100) / 30)
    assert siren.law(fans, siren.gain(sine, fans, "first"), "first").support[1] == pytest.approx(1 / 100)
    walk = SCHEMES["random_walk"]
    assert walk.gain(ACTIVATIONS["tanh"], fans) == pytest.approx(math.exp(1 / 200))
    assert walk.gain(ACTIVATIONS["relu"], Fans(4, 4)) == pytest.approx(math.sqrt(2) * math.exp(1.2 / 3.6))


@pytest.mark.parametrize("name", ["glorot_normal", "he_normal", "lecun_normal"])
def test_keras_normals_are_the_truncated_distribution(name):
    record, fans = scheme(name, distribution="truncated_normal"), Fans(300, 300)
    law, plain = record.law(fans), scheme(name).law(fans)
    assert law.variance == pytest.approx(plain.variance, rel=1e-12)
    assert law.support[1] == pytest.approx(2 * plain.std / 0.87962566103423978)


def test_patterns_are_those_of_torch_scipy_and_the_papers():
    def fill(name, *shape):
        return SCHEMES[name].fill_(torch.empty(shape), fans=Fans(shape[1], shape[0]), generator=stream(0, ""))

    assert torch.equal(fill("identity", 5, 3), nn.init.eye_(torch.empty(5, 3)))
    assert torch.equal(fill("identity", 4, 6, 3, 3), nn.init.dirac_(torch.empty(4, 6, 3, 3)))
    grouped = nn.Conv1d(6, 9, 4, groups=3)
    fill_(grouped, "dirac")
    assert torch.equal(grouped.weight, nn.init.dirac_(torch.empty(9, 2, 4), groups=3))
    expected = torch.tensor(linalg.hadamard(16)[:12, :5] / 4.0, dtype=torch.float32)
    assert torch.equal(fill("zero_hadamard", 12, 5), expected)
    assert torch.equal(fill("zero_hadamard", 12, 5, 3)[:, :, 1], expected)
    rows = [[math.sin(i * (2 * math.pi * j / 7 + 2 * math.pi / 4)) for j in range(7)] for i in (1, 2, 3, 4)]
    waves = fill("sinusoidal", 4, 7) / torch.tensor(rows)
    assert float(waves.std()) == pytest.approx(0, abs=1e-5 * float(waves.mean()))


def test_orthogonal_is_haar():
    # An element of a Haar matrix of order 6: its square is Beta(1/2, 5/2); the KS test alarms falsely once in 10,000.
    generator = stream(0, "haar")
    record, fans = SCHEMES["orthogonal"], Fans(6, 6)
    entries = [record.fill_(torch.empty(6, 6), fans=fans, generator=generator)[0, 0].item() for _ in range(2000)]
    signed = stats.beta(0.5, 2.5)
    assert stats.kstest(entries, lambda x: 0.5 + 0.5 * np.sign(x) * signed.cdf(np.square(x))).pvalue > 1e-4


def test_sparse_chooses_its_places_evenly_per_unit():
    record = scheme("sparse", nonzeros=3)
    weight = record.fill_(torch.empty(4000, 20), fans=Fans(20, 4000), generator=stream(0, "w"))
    assert set((weight != 0).sum(1).tolist()) == {3}
    assert stats.chisquare((weight != 0).sum(0).numpy()).pvalue > 1e-4


def test_delta_orthogonal_keeps_norms_through_circular_convolutions():
    conv = nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular", bias=False)
    fill_(conv, "delta_orthogonal")
    x = torch.randn(2, 8, 6, 6)
    assert float(conv(x).detach().square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-5)


def test_looks_linear_makes_a_relu_network_linear():
    net = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    fill_(net, "looks_linear", act="relu")
    x, y = torch.randn(2, 5, 9)
    assert torch.allclose(net(x) + net(y), net(x + y), atol=1e-5)
    assert torch.allclose(net(x) * -2, net(-2 * x), atol=1e-5)


def test_scaled_orthogonal_keeps_the_second_moment_when_the_layer_widens():
    layer = nn.Linear(20, 80, bias=False)
    fill_(layer, "scaled_orthogonal")
    x = torch.randn(3, 20)
    assert torch.allclose(layer(x).square().mean(1), x.square().mean(1), rtol=1e-4)


def test_values_do_not_depend_on_layout_dtype_or_device():
    fans, record = Fans(64, 32), SCHEMES["he_normal"]
    plain = record.fill_(torch.empty(32, 64), fans=fans, generator=stream(0, "w"))
    turned = record.fill_(torch.empty(64, 32).t(), fans=fans, generator=stream(0, "w"))
    double = record.fill_(torch.empty(32, 64, dtype=torch.float64), fans=fans, generator=stream(0, "w"))
    half = record.fill_(torch.empty(32, 64, dtype=torch.bfloat16), fans=fans, generator=stream(0, "w"))
    assert torch.equal(plain, turned)
    assert torch.equal(plain.double(), double)
    assert torch.equal(plain.bfloat16(), half)
