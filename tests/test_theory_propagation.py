"""Theory against networks: forecasts beside ensembles of plain torch networks, which share no code with them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.theory import critical, doubly_critical, fixed_point, jacobian_moments, moments
from initlab.theory.dead_units import predict_dead_fraction
from initlab.theory.loss import logit_gradient
from initlab.theory.nodes import BranchNode, InputProducts, LayerNode, PoolNode, Taps, measure_inputs, standard_inputs
from initlab.theory.propagation import COLUMNS, forecast

CLASSES = 10


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """One (activation, scheme) pair: `variance(n, m)` of a weight of fans n, m; `draw`: its distribution."""

    act: str
    scheme: str
    variance: Callable[[int, int], float]
    bias: float = 0.0
    draw: str = "normal"
    sizes: tuple[int, ...] = (500,) * 13

    @property
    def record(self) -> Activation:
        return activation(self.act)

    @property
    def all_sizes(self) -> tuple[int, ...]:
        return (*self.sizes, CLASSES)


def he(n, m):
    return 2 / n


def glorot(n, m):
    return 2 / (n + m)


def lecun(n, m):
    return 1 / n


def at(act, **where):
    point = critical(act, **where)
    return lambda n, m: point.sigma_w**2 / n


RECTANGLE = (784, 300, 600, 500, 250, 500, 700, 350, 500, 500, 400, 500, 600)
DOUBLY = doubly_critical("gelu")

CASES = [
    Case("tanh", "glorot_normal", glorot),
    Case("tanh", "critical", at("tanh", sigma_b=0.3), bias=0.09),
    Case("tanh", "orthogonal", lambda n, m: 2.25 / max(n, m), draw="orthogonal"),
    Case("relu", "he_uniform", he, draw="uniform"),
    Case("relu", "orthogonal", lambda n, m: 2 / max(n, m), draw="orthogonal"),
    Case("relu", "he_normal, rectangular", he, sizes=RECTANGLE),
    Case("sigmoid", "glorot_uniform", glorot, draw="uniform"),
    Case("gelu", "he_normal", he),
    Case("gelu", "critical", lambda n, m: DOUBLY.sigma_w**2 / n, bias=DOUBLY.sigma_b**2),
    Case("selu", "lecun_normal", lecun),
    Case("elu", "he_normal", he),
    Case("silu", "glorot_normal", glorot, bias=0.01),
    Case("softsign", "torch_default", lambda n, m: 1 / (3 * n), draw="uniform"),
    Case("hardtanh", "gaussian, chaotic", lambda n, m: 2.56 / n, bias=0.04),
    Case("leaky_relu", "he_normal, rectangular", he, sizes=RECTANGLE[::-1]),
]


def drawn(case: Case, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    std = math.sqrt(case.variance(columns, rows))
    if case.draw == "uniform":
        return (2 * torch.rand(rows, columns, generator=generator) - 1) * math.sqrt(3) * std
    if case.draw == "orthogonal":
        q = torch.nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
        return q * std * math.sqrt(max(rows, columns))
    return torch.randn(rows, columns, generator=generator) * std


def batch(*shape: int) -> Tensor:
    """Inputs of unequal lengths that have something in common: correlation 0.33."""
    generator = torch.Generator().manual_seed(10**6)  # not a network's seed: their draws would be the same
    shared = torch.randn(shape[1:], generator=generator)
    x = (torch.randn(shape, generator=generator) + 0.7 * shared) / 1.22
    return x * torch.exp(0.3 * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator))


def measured(preactivations: list[Tensor], loss: Tensor) -> np.ndarray:
    """[2, layers]: second moments and mean square gradients of preactivations."""
    gradients = torch.autograd.grad(loss, preactivations)
    moments = [float(h.detach().double().square().mean()) for h in preactivations]
    return np.array([moments, [float(g.double().square().mean()) for g in gradients]])


def simulate(case: Case, x: Tensor, networks: int) -> np.ndarray:
    """[networks, 2, layers] of fully connected networks."""
    found = []
    for seed in range(networks):
        generator = torch.Generator().manual_seed(seed)
        h, kept = x, []
        for k, (n, m) in enumerate(pairwise(case.all_sizes)):
            h = h if k == 0 else case.record(h)
            h = h @ drawn(case, m, n, generator).T + math.sqrt(case.bias) * torch.randn(m, generator=generator)
            kept.append(h.requires_grad_())
        labels = torch.randint(CLASSES, (len(x),), generator=generator)
        found.append(measured(kept, F.cross_entropy(h, labels)))
    return np.array(found)


def layers(case: Case) -> list[LayerNode]:
    last = len(case.all_sizes) - 2
    return [
        LayerNode(
            f"layer.{k}",
            n,
            m,
            case.variance(n, m),
            case.bias,
            orthogonal=case.draw == "orthogonal",
            act=None if k == last else case.record,
            fed_by="data" if k == 0 else "activation",
        )
        for k, (n, m) in enumerate(pairwise(case.all_sizes))
    ]


def widths_error(case: Case, q: np.ndarray, networks: int) -> np.ndarray:
    """Standard error of q_l over networks of finite width, relative to q_l.

    Given layer l, preactivations are Gaussian of a variance v_l that fluctuates: a mean of n squares adds 2 v²/n, and
    δv_{l+1} = χ_q δv_l + σ_w² (mean of φ² over n units − its expectation). All samples are taken to move together.
    """
    spread, error = 0.0, []
    for k, (n, m) in enumerate(pairwise(case.all_sizes)):
        if k:
            z = np.linspace(-9, 9, 20001)
            u = torch.from_numpy(math.sqrt(q[k - 1]) * z)
            density = np.exp(-z * z / 2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
            squares = case.record(u).numpy() ** 2
            noise = density @ squares**2 - (density @ squares) ** 2
            wide = case.variance(n, m) * n
            slope = wide * float(moments(case.record, q[k - 1]).growth)
            spread = slope**2 * spread + wide**2 * noise / n
        error.append(math.sqrt((spread + 2 * q[k] ** 2 / m) / networks) / q[k])
    return np.array(error)


def column(frame, stat: str) -> np.ndarray:
    return frame[frame.stat == stat].value.to_numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.act}, {c.scheme}")
def test_second_moments_and_gradients_are_those_of_networks(case):
    networks, x = 16, batch(8, case.sizes[0])
    predicted = forecast(layers(case), measure_inputs(x), CLASSES)
    found = simulate(case, x, networks)
    q, gradient = column(predicted, "q"), column(predicted, "grad_mean_square")
    # 13 layers × 15 cases against 3 standard errors: the readout's ten units apart, errors follow each other closely
    allowed = np.maximum(0.05, 3 * widths_error(case, q, networks))
    assert (np.abs(found[:, 0].mean(axis=0) / q - 1) <= allowed).all()
    assert np.abs(np.log10(found[:, 1].mean(axis=0) / gradient)).max() <= 0.15


def test_correlations_are_those_of_networks():
    case = CASES[3]
    x = batch(16, 500)
    predicted = forecast(layers(case), measure_inputs(x), CLASSES)
    total = np.zeros(13)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        h = x
        for k in range(13):
            h = (h if k == 0 else case.record(h)) @ drawn(case, case.all_sizes[k + 1], case.all_sizes[k], generator).T
            unit = F.normalize(h, dim=1)
            total[k] += float((unit @ unit.T).sum() - 16) / 240 / 8
    assert column(predicted, "c")[:-1] == pytest.approx(total[:-1], abs=0.02)


def test_a_batch_divides_gradients_by_its_square():
    chain = [LayerNode("a", 4, 8, 0.5, act=activation("tanh"), fed_by="data"), LayerNode("b", 8, 3, 0.1)]
    one, many = (forecast(chain, standard_inputs(batch=n), 3) for n in (1, 10))
    ratio = column(one, "grad_mean_square") / column(many, "grad_mean_square")
    assert ratio == pytest.approx([100, 100])


def test_rows_have_the_columns_of_layers_csv():
    frame = forecast(layers(CASES[0]), standard_inputs(batch=16), CLASSES)
    assert tuple(frame) == COLUMNS
    assert set(frame.source) == {"predicted"}
    assert set(frame.step) == {0}
    assert frame["index"].tolist() == sorted(frame["index"])
    assert frame["index"].min() == 1
    signal = {"q", "mean", "std", "c", "saturated_fraction", "dead_fraction"}
    assert set(frame.stat) == signal | {"grad_mean_square", "jacobian_mean", "jacobian_var"}


def test_saturated_and_silent_units_are_counted():
    generator = torch.Generator().manual_seed(0)
    samples, units, c = 6, 40000, 0.5
    shared = torch.randn(1, units, generator=generator)
    h = 1.7 * (math.sqrt(c) * shared + math.sqrt(1 - c) * torch.randn(samples, units, generator=generator))
    for name, edge in (("relu", 0.0), ("hardswish", -3.0)):
        silent = float((h <= edge).all(dim=0).double().mean())
        predicted = predict_dead_fraction(activation(name), np.full(samples, 1.7**2), c, samples)
        assert predicted == pytest.approx(silent, abs=4 * math.sqrt(silent / units + 1e-9))  # 4 sigma of a count
    layer = LayerNode("a", 1, 8, 1.7**2, act=activation("hardtanh"), fed_by="data")
    row = column(forecast([layer], standard_inputs(1.0)), "saturated_fraction")
    assert row == pytest.approx([float((h.abs() > 1).double().mean())], abs=0.01)


def test_no_answer_behind_a_norm_an_unknown_input_or_weights_with_a_mean():
    act = activation("tanh")
    known = LayerNode("a", 4, 8, 0.25, act=act, fed_by="data")
    for bad in (
        LayerNode("b", 8, 8, 0.1, act=act, fed_by="norm"),
        LayerNode("b", 8, 8, 0.1, act=act, fed_by="unknown"),
        LayerNode("b", 8, 8, 0.1, mean=0.5, act=act),
        LayerNode("b", 8, 8, math.nan, act=act),
    ):
        frame = forecast([known, bad, LayerNode("c", 8, 3, 0.1)], standard_inputs(), CLASSES)
        assert set(frame.layer) == {"a"}
        assert "grad_mean_square" not in set(frame.stat)  # it would have to come down through what is unknown


def test_zero_weights_are_predicted_exactly():
    act = activation("sigmoid")
    chain = [
        LayerNode("a", 4, 8, 0.0, act=act, fed_by="data"),
        LayerNode("b", 8, 8, 0.0, act=act),
        LayerNode("c", 8, 5, 0.0),
    ]
    frame = forecast(chain, standard_inputs(), 5)
    assert column(frame, "q").tolist() == [0, 0, 0]
    assert column(frame, "grad_mean_square").tolist() == [0, 0, pytest.approx(0.8 / 5)]
    assert "c" not in set(frame.stat)


@pytest.mark.parametrize("multiplier", [1.0, 0.4])
def test_residual_branches_add_up(multiplier):
    width, blocks, networks = 300, 4, 16
    record, x = activation("relu"), batch(8, 300)
    layer = LayerNode("", width, width, 2 / width)
    stem = LayerNode("first", width, width, 1 / width, fed_by="data")
    inner, outer = (
        LayerNode("i", width, width, 2 / width, act=record, fed_by="residual"),
        LayerNode("o", width, width, layer.variance),
    )
    nodes = [
        stem,
        *[BranchNode((inner, outer), multiplier)] * blocks,
        LayerNode("r", width, CLASSES, 1 / width, fed_by="residual"),
    ]
    found = []
    for seed in range(networks):
        g = torch.Generator().manual_seed(seed)

        def w(rows, columns, variance, g=g):
            return torch.randn(columns, rows, generator=g) * math.sqrt(variance)

        stream = (x @ w(width, width, 1 / width)).requires_grad_()
        kept = [stream]
        for _ in range(blocks):
            kept.append((stream @ w(width, width, 2 / width)).requires_grad_())
            kept.append((record(kept[-1]) @ w(width, width, 2 / width)).requires_grad_())
            stream = stream + multiplier * kept[-1]
        kept.append((stream @ w(CLASSES, width, 1 / width)).requires_grad_())
        found.append(measured(kept, F.cross_entropy(kept[-1], torch.randint(CLASSES, (8,), generator=g))))
    predicted = forecast(nodes, measure_inputs(x), CLASSES)
    mean = np.mean(found, axis=0)
    assert mean[0][:-1] == pytest.approx(column(predicted, "q")[:-1], rel=0.1)
    assert np.abs(np.log10(mean[1] / column(predicted, "grad_mean_square"))).max() <= 0.15


def test_behind_an_activation_of_a_sum_there_is_no_answer():
    record = activation("relu")
    stem = LayerNode("stem", 4, 8, 0.5, act=record, fed_by="data")
    inner, outer = LayerNode("inner", 8, 8, 0.25, act=record), LayerNode("outer", 8, 8, 0.25)
    after = LayerNode("after", 8, 8, 0.25)
    rows = forecast([stem, BranchNode((inner, outer), act=record), after], standard_inputs(), CLASSES)
    assert list(dict.fromkeys(rows.layer)) == ["stem", "inner", "outer"]
    q = {layer: value for layer, stat, value in rows[["layer", "stat", "value"]].values if stat == "q"}
    assert q == {"stem": 2.0, "inner": pytest.approx(2.0), "outer": pytest.approx(1.0 + 2.0)}  # E[φ²] + branch
    projected = BranchNode((inner, outer), shortcut=LayerNode("shortcut", 8, 8, 0.25), act=record)
    assert "after" in set(forecast([stem, projected, after], standard_inputs(), CLASSES).layer)


def test_mean_pooling_leaves_the_logits_open_and_the_gradient_known():
    record, channels, size, networks = activation("relu"), 64, 6, 16
    x = batch(8, 3, size, size)
    taps = Taps((3, 3), (1, 1), (1, 1))
    nodes = [
        LayerNode("a", 27, channels, 2 / 27, act=record, fed_by="data", taps=taps),
        LayerNode("b", 9 * channels, channels, 2 / (9 * channels), act=record, taps=taps),
        PoolNode(),
        LayerNode("readout", channels, CLASSES, 1 / channels),
    ]
    frame = forecast(nodes, measure_inputs(x, maps=True), CLASSES)
    assert set(frame[frame.layer == "readout"].stat) == {"grad_mean_square"}
    found = []
    for seed in range(networks):
        g = torch.Generator().manual_seed(seed)
        h, kept = x, []
        for fans, variance in ((3, 2 / 27), (channels, 2 / (9 * channels))):
            w = torch.randn(channels, fans, 3, 3, generator=g) * math.sqrt(variance)
            kept.append(F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), w).requires_grad_())
            h = record(kept[-1])
        kept.append((h.mean((2, 3)) @ torch.randn(channels, CLASSES, generator=g) / 8).requires_grad_())
        found.append(measured(kept, F.cross_entropy(kept[-1], torch.randint(CLASSES, (8,), generator=g))))
    gradient = np.mean(found, axis=0)[1]
    assert np.abs(np.log10(gradient / column(frame, "grad_mean_square"))).max() <= 0.15


def test_dropout_counts_the_inputs_it_keeps():
    record = activation("tanh")
    chain = [
        LayerNode("a", 100, 400, 1 / 100, act=record, fed_by="data"),
        LayerNode("b", 400, 400, 1 / 400, act=record, keep=0.8),
        LayerNode("c", 400, CLASSES, 1 / 400, keep=0.8),
    ]
    x, found = batch(16, 100), []
    for seed in range(16):
        g = torch.Generator().manual_seed(seed)
        h, kept = x, []
        for layer in chain:
            if layer.keep < 1:
                h = record(h) * (torch.rand(h.shape, generator=g) < layer.keep) / layer.keep
            h = h @ torch.randn(int(layer.fan_in), layer.units, generator=g) * math.sqrt(layer.variance)
            kept.append(h.requires_grad_())
        found.append(measured(kept, F.cross_entropy(h, torch.randint(CLASSES, (16,), generator=g))))
    frame = forecast(chain, measure_inputs(x), CLASSES)
    mean = np.mean(found, axis=0)
    assert mean[0][:-1] == pytest.approx(column(frame, "q")[:-1], rel=0.05)
    assert np.abs(np.log10(mean[1] / column(frame, "grad_mean_square"))).max() <= 0.05


def mean_and_variance(jacobian: Tensor) -> tuple[float, float]:
    """Of the squared singular values, as traces: Σ s² = ‖J‖², Σ s⁴ = ‖J Jᵀ‖²."""
    small = jacobian if jacobian.shape[0] <= jacobian.shape[1] else jacobian.T
    mean = float(small.square().sum()) / len(small)
    return mean, float((small @ small.T).square().sum()) / len(small) - mean**2


def chain_jacobian(act, sigma_w, q, depth, width, orthogonal, generator):
    """∏ W_l D_l, with preactivations that start Gaussian of variance q and then are the network's own."""
    h = math.sqrt(q) * torch.randn(width, generator=generator, dtype=torch.float64)
    jacobian = torch.eye(width, dtype=torch.float64)
    for _ in range(depth):
        w = torch.randn(width, width, generator=generator, dtype=torch.float64) * sigma_w / math.sqrt(width)
        if orthogonal:
            w = sigma_w * torch.nn.init.orthogonal_(torch.empty(width, width, dtype=torch.float64), generator=generator)
        u = h.clone().requires_grad_()
        phi = act(u)
        (slope,) = torch.autograd.grad(phi.sum(), u)
        jacobian, h = w @ (slope[:, None] * jacobian), w @ phi.detach()
    return jacobian


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("name", ["linear", "relu", "tanh", "hardtanh"])
def test_the_jacobian_has_the_predicted_spread(name, orthogonal, depth):
    sigma_w = {"linear": 1.0, "relu": 2**0.5, "tanh": 1.5, "hardtanh": 1.4}[name]
    q = 1.0 if name in ("linear", "relu") else fixed_point(name, sigma_w).q_star
    predicted = jacobian_moments(name, sigma_w, q, depth, orthogonal)
    width = 250 if orthogonal else 400
    draws = [
        chain_jacobian(activation(name), sigma_w, q, depth, width, orthogonal, torch.Generator().manual_seed(seed))
        for seed in range(20)
    ]
    # ReLU, Gaussian: each layer adds 1/n + 1/n to the variance of ln(mean), so 2 % at depth 4; the variance follows
    # the mean's square, and 15 % are more than 3 standard errors
    mean, variance = np.mean([mean_and_variance(j) for j in draws], axis=0)
    assert mean == pytest.approx(predicted.mean, rel=0.07)
    assert variance == pytest.approx(predicted.variance, rel=0.15, abs=1e-9)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_forecast_has_the_jacobian_of_rectangular_layers(orthogonal):
    sizes = (120, 200, 90, 160)
    record = activation("relu")
    x = batch(1, 120).double()
    nodes = [
        LayerNode(
            f"{k}",
            n,
            m,
            2 / max(n, m) if orthogonal else 2 / n,
            act=record,
            orthogonal=orthogonal,
            fed_by="data" if k == 0 else "activation",
        )
        for k, (n, m) in enumerate(pairwise(sizes))
    ]
    frame = forecast(nodes, measure_inputs(x))
    found = []
    for seed in range(24):
        g = torch.Generator().manual_seed(seed)
        h, jacobian, row = x[0], None, []
        for node in nodes:
            w = torch.randn(node.units, int(node.fan_in), generator=g, dtype=torch.float64) * math.sqrt(node.variance)
            if orthogonal:
                scale = math.sqrt(node.variance * max(node.units, node.fan_in))
                w = scale * torch.nn.init.orthogonal_(torch.empty_like(w), generator=g)
            jacobian = w if jacobian is None else w @ ((h > 0).double()[:, None] * jacobian)
            h = w @ (h if row == [] else torch.relu(h))
            row.append(mean_and_variance(jacobian))
        found.append(row)
    mean = np.mean(found, axis=0)
    assert mean[:, 0] == pytest.approx(column(frame, "jacobian_mean"), rel=0.08)
    assert mean[:, 1] == pytest.approx(column(frame, "jacobian_var"), rel=0.15, abs=1e-9)


def test_closed_forms_of_the_jacobian_at_criticality():
    for depth in (1, 7):
        assert jacobian_moments("linear", 1.0, 1.0, depth).variance == pytest.approx(depth)
        assert jacobian_moments("linear", 1.0, 1.0, depth, orthogonal=True).variance == pytest.approx(0, abs=1e-12)
        assert jacobian_moments("relu", 2**0.5, 1.0, depth).variance == pytest.approx(2 * depth)
        assert jacobian_moments("relu", 2**0.5, 1.0, depth, orthogonal=True).variance == pytest.approx(depth)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("q", [1e-6, 1.0, 30.0])
def test_the_gradient_at_the_logits(classes, q):
    generator = torch.Generator().manual_seed(3)
    logits = (math.sqrt(q) * torch.randn(40000, classes, generator=generator)).requires_grad_()
    labels = torch.randint(classes, (40000,), generator=generator)
    (g,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    assert float(logit_gradient(np.array([q]), classes)[0]) == pytest.approx(float(g.square().mean()), rel=0.02)


def test_inputs_are_measured_per_sample_and_position():
    x = batch(5, 3, 4, 4)
    maps, flat = measure_inputs(x, maps=True), measure_inputs(x)
    assert maps.squares.shape == (5, 4, 4)
    assert maps.squares.mean(axis=(1, 2)) == pytest.approx(flat.squares)
    assert flat.squares == pytest.approx(x.double().flatten(1).square().mean(1).numpy())
    i, j = flat.pairs[3]
    assert flat.products[3] == pytest.approx(float((x[i] * x[j]).double().mean()))
    assert (flat.pairs[:, 0] != flat.pairs[:, 1]).all()
    assert flat.batch == 5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: standard_inputs(-1.0), "second_moment=-1.0"),
        (lambda: standard_inputs(1.0, 2.0), "correlation=2.0"),
        (lambda: measure_inputs(torch.ones(3)), "first axis of samples"),
        (lambda: jacobian_moments("tanh", 1.0, 1.0, -1), "depth=-1"),
        (lambda: jacobian_moments("tanh", -1.0, 1.0, 2), "sigma_w=-1.0"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_maps_of_one_position_are_pooled_exactly():
    record = activation("tanh")
    inputs = InputProducts(np.ones((2, 1, 1)), np.zeros((1, 1, 1)))
    taps = Taps((1, 1), (1, 1), (0, 0))
    conv = LayerNode("a", 3, 8, 1 / 3, act=record, fed_by="data", taps=taps)
    readout = LayerNode("b", 8, 4, 1 / 8)
    pooled = forecast([conv, PoolNode(), readout], inputs, 4)
    assert column(pooled, "q")[1] == pytest.approx(float(moments(record, 1.0).square))
