"""What a `LayerRecorder` measures equals slow oracles: loops over samples and units, gradients kept by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.diagnostics import STATS, LayerRecorder, first_bad_layers, layer_probes
from initlab.ensemble import stack
from initlab.initialize import fill_
from initlab.models import build
from initlab.statistics.histograms import histogram

INTERVAL = (-0.4, 0.7)
BATCH = 7


def part_of(net: nn.Module):
    return stack([net]).parts[0]


def record(net: nn.Module, x: Tensor, y: Tensor, *, step: int = 4, interval=INTERVAL) -> LayerRecorder:
    """One step of gradient descent under a recorder, as the training loop does it."""
    part = part_of(net)
    recorder = LayerRecorder(part, step=step, interval=interval)
    with recorder:
        loss = F.cross_entropy(part.forward(x)[0], y)
        grads = torch.autograd.grad(loss, part.parameters)
    recorder.measure_gradients(dict(zip(part.names, grads, strict=True)))
    recorder.copy_weights()
    with torch.no_grad():
        for parameter, grad in zip(part.parameters, grads, strict=True):
            parameter -= 0.1 * grad
    recorder.measure_update()
    return recorder


def table(recorder: LayerRecorder) -> dict[tuple[str, str], float]:
    found = {(layer, stat): value for _, layer, _, stat, value, _ in recorder.rows[0]}
    assert len(found) == len(recorder.rows[0]), "a statistic was written twice"
    return found


def batch(*shape: int, classes: int = 3, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(BATCH, *shape, generator=draw, dtype=dtype)
    return x, torch.randint(classes, (BATCH,), generator=draw)


def made(name: str, shape: tuple[int, ...], act: str = "tanh", depth: int = 2, **options) -> nn.Module:
    net = build(name, depth=depth, width=6, act=act, input_shape=shape, classes=3, **options).double()
    fill_(net, "he_normal", act=act, sigma_b=0.3)
    return net


# --- the oracle: explicit loops ---------------------------------------------------------------------------------------


def units(tensor: Tensor) -> list[list[float]]:
    """Samples of units: [B, U] as it is, maps [B, C, H, W] with every position of every image a sample."""
    listed = []
    for sample in tensor.detach():
        if sample.dim() == 1:
            listed.append(sample.tolist())
        else:
            for row in range(sample.shape[1]):
                for column in range(sample.shape[2]):
                    listed.append([float(sample[channel, row, column]) for channel in range(sample.shape[0])])
    return listed


def flat(values: list[list[float]]) -> list[float]:
    return [value for row in values for value in row]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def expected_stats(h: Tensor, post: Tensor | None, weight: Tensor, grad: Tensor, moved: Tensor) -> dict[str, float]:
    values = flat(units(h))
    delta = flat(units(h.grad))
    found = {
        "mean": mean(values),
        "std": math.sqrt(mean([(v - mean(values)) ** 2 for v in values])),
        "q": mean([v * v for v in values]),
        "nonfinite": sum(not math.isfinite(v) for v in values),
        "grad_mean_square": mean([d * d for d in delta]),
        "weight_norm": math.sqrt(math.fsum(float(w) ** 2 for w in weight.flatten())),
        "grad_norm": math.sqrt(math.fsum(float(g) ** 2 for g in grad.flatten())),
        "update_ratio": math.sqrt(math.fsum(float(d) ** 2 for d in moved.flatten()))
        / math.sqrt(math.fsum(float(w) ** 2 for w in weight.flatten())),
    }
    if post is not None:
        answers = units(post)
        silent = [all(row[unit] == 0 for row in answers) for unit in range(len(answers[0]))]
        found["dead_fraction"] = sum(silent) / len(silent)
        found["saturated_fraction"] = sum(v < INTERVAL[0] or v > INTERVAL[1] for v in values) / len(values)
    return found


def by_hand(net: nn.Module, x: Tensor, y: Tensor, act) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Forward and backward of a chain written out, every preactivation kept with its gradient."""
    kept: dict[str, tuple[Tensor, Tensor | None]] = {}
    x = x.flatten(1) if net.entry is not None else x
    for k, layer in enumerate(net.hidden):
        h = layer(x)
        h = net.norms[k](h) if net.norms is not None else h
        h.retain_grad()
        x = act(h)
        kept[f"hidden.{k}"] = (h, x)
    out = net.readout(x.mean((2, 3)) if x.dim() == 4 else x)
    out.retain_grad()
    kept["readout"] = (out, None)
    F.cross_entropy(out, y).backward()
    return kept


CHAINS = {
    "mlp": ("mlp", (4,), "tanh", torch.tanh, {}),
    "mlp relu": ("mlp", (4,), "relu", torch.relu, {}),
    "mlp batch norm": ("mlp", (4,), "relu", torch.relu, {"norm": "batch"}),
    "cnn": ("cnn", (2, 6, 5), "relu", torch.relu, {}),
    "cnn layer norm": ("cnn", (2, 6, 5), "tanh", torch.tanh, {"norm": "layer"}),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_every_statistic_equals_its_oracle(chain):
    name, shape, act, phi, options = CHAINS[chain]
    net = made(name, shape, act, **options)
    with torch.no_grad():
        net.hidden[1].bias[2] = -1e3  # a unit that ReLU keeps silent and tanh saturates
    x, y = batch(*shape)
    weights = {layer.name: net.get_submodule(layer.name).weight for layer in net.weight_layers}
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    kept = by_hand(net, x, y, phi)
    grads = {key: weight.grad.clone() for key, weight in weights.items()}
    found = table(record(net, x, y))
    expected = {}
    for key, (h, post) in kept.items():
        stats = expected_stats(h, post, before[key], grads[key], -0.1 * grads[key])
        expected |= {(key, stat): value for stat, value in stats.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-15), key


def test_every_statistic_of_a_recorded_tensor_is_recorded():
    """And so compared with its oracle above, whichever is added to the registry."""
    recorded = ("preactivation", "outside", "postactivation", "delta", "weight", "gradient")
    stats = {stat for _, stat in table(record(made("mlp", (4,)), *batch(4)))}
    assert stats == {s.name for s in STATS.values() if s.of in recorded} | {"update_ratio"}


def test_rows_name_step_layer_and_source():
    rows = record(made("mlp", (4,)), *batch(4), step=17).rows[0]
    assert {(step, source) for step, *_, source in rows} == {(17, "measured")}
    assert {(index, layer) for _, layer, index, *_ in rows} == {(1, "hidden.0"), (2, "hidden.1"), (3, "readout")}
    assert all(type(value) is float for *_, value, _ in rows)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resmlp", "resnet"])
def test_histograms_are_those_of_the_tensors(name):
    """Counts, extremes and moments equal `histogram` of the tensor that a hook of the test's own sees."""
    shape = (1, 6, 6) if name in ("cnn", "resnet") else (4,)
    net = made(name, shape, depth=1)
    x, y = batch(*shape)
    seen: dict[tuple[str, str], Tensor] = {}
    modules = dict(net.named_modules())
    for layer in net.weight_layers:
        seen["weight", layer.name] = modules[layer.name].weight.detach().clone()
        if layer.activation is None:
            modules[layer.name].register_forward_hook(
                lambda m, args, out, key=layer.name: seen.__setitem__(("preactivation", key), out.detach())
            )
        else:
            modules[layer.activation].register_forward_hook(
                lambda m, args, out, key=layer.name: seen.update(
                    {("preactivation", key): args[0].detach(), ("postactivation", key): out.detach()}
                )
            )
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    for layer in net.weight_layers:
        seen["gradient", layer.name] = modules[layer.name].weight.grad
    found = {(kind, layer): record for (kind, _, layer), record in record(net, x, y).histograms[0].items()}
    assert found.keys() == seen.keys()
    for key, tensor in seen.items():
        exact = histogram(tensor.numpy())
        assert (found[key].num, found[key].nonfinite) == (exact.num, exact.nonfinite), key
        np.testing.assert_allclose([found[key].low, found[key].high], [exact.low, exact.high], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found[key].sum_squares, exact.sum_squares, rtol=1e-9)
        if key[0] != "gradient":  # whose last bits may move a value across an edge
            assert found[key].counts == exact.counts, key


# --- fractions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [0, 1, 4, 6])
def test_dead_fraction_counts_units_silent_on_every_sample(silent):
    net = made("mlp", (4,), "relu", depth=1)
    with torch.no_grad():
        net.hidden[0].bias.fill_(1e3)
        net.hidden[0].bias[:silent] = -1e3
    assert table(record(net, *batch(4)))["hidden.0", "dead_fraction"] == pytest.approx(silent / 6)


def test_a_unit_that_is_positive_on_one_sample_is_not_dead():
    net = made("mlp", (1,), "relu", depth=1)
    with torch.no_grad():
        net.hidden[0].weight.fill_(1.0)
        net.hidden[0].bias.fill_(-1.0)
    x = torch.zeros(BATCH, 1, dtype=torch.float64)
    y = torch.zeros(BATCH, dtype=torch.long)
    assert table(record(net, x, y))["hidden.0", "dead_fraction"] == 1
    x[3] = 2.0
    assert table(record(net, x, y))["hidden.0", "dead_fraction"] == 0


def test_a_channel_is_a_unit():
    """One channel of six is silent: a sixth is dead, though other channels are 0 at many positions."""
    net = made("cnn", (1, 6, 6), "relu", depth=1)
    with torch.no_grad():
        net.hidden[0].bias.zero_()
        net.hidden[0].bias[4] = -1e3
    assert table(record(net, *batch(1, 6, 6)))["hidden.0", "dead_fraction"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("interval", "outside"), [((-1.0, 1.5), 3), ((-3.0, 1.5), 2), ((-1.0, 9.5), 1), ((-3.0, 9.5), 0)], ids=str
)
def test_saturated_fraction_is_of_preactivations_outside_the_interval(interval, outside):
    net = made("mlp", (1,), "tanh", depth=1)
    with torch.no_grad():
        net.hidden[0].weight.fill_(1.0)
        net.hidden[0].bias.zero_()
    x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [1.5], [2.0], [9.0]], dtype=torch.float64)
    y = torch.zeros(BATCH, dtype=torch.long)
    found = table(record(net, x, y, interval=interval))
    assert found["hidden.0", "saturated_fraction"] == pytest.approx(outside / 7)


@pytest.mark.parametrize("name", ["mlp", "resmlp"])
def test_without_an_interval_nothing_counts_as_saturated(name):
    assert not {s for _, s in table(record(made(name, (4,)), *batch(4), interval=None))} & {"saturated_fraction"}


def test_a_readout_is_neither_saturated_nor_dead():
    stats = {stat for layer, stat in table(record(made("mlp", (4,)), *batch(4))) if layer == "readout"}
    assert not stats & {"saturated_fraction", "dead_fraction"}


# --- numbers at the edge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_underflow_nor_overflow(size):
    """In float32 1e-30 squared is 0 and 1e30 squared infinite; the statistics are computed in float64."""
    net = build("mlp", depth=1, width=6, act="linear", input_shape=(4,), classes=3)
    fill_(net, "normal", act="linear", parameters={"std": size})
    x, y = batch(4, dtype=torch.float32)
    weight = net.hidden[0].weight.detach().double().clone()
    found = table(record(net, x, y))
    exact = x.double() @ weight.T
    assert found["hidden.0", "q"] == pytest.approx(float(exact.square().mean()), rel=1e-5)
    assert 0 < found["hidden.0", "q"] < math.inf
    assert found["hidden.0", "std"] == pytest.approx(float(exact.std(correction=0)), rel=1e-5)
    assert found["hidden.0", "weight_norm"] == pytest.approx(float(weight.norm()), rel=1e-6)


def test_a_tiny_gradient_is_not_zero():
    net = build("mlp", depth=2, width=6, act="linear", input_shape=(4,), classes=3)
    fill_(net, "normal", act="linear", parameters={"std": 1e-13})
    found = table(record(net, *batch(4, dtype=torch.float32)))
    assert 0 < found["hidden.0", "grad_mean_square"] < 1e-50
    assert 0 < found["hidden.0", "grad_norm"] < 1e-23


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_counted_and_nothing_raises(value):
    net = made("mlp", (4,), "relu")
    x, y = batch(4)
    x[2, 1] = value
    recorder = record(net, x, y)
    assert table(recorder)["hidden.0", "nonfinite"] == 6
    assert recorder.histograms[0]["preactivation", 1, "hidden.0"].nonfinite == 6
    assert recorder.histograms[0]["preactivation", 1, "hidden.0"].num == 6 * (BATCH - 1)


# --- modules from elsewhere -------------------------------------------------------------------------------------------


def foreign(inplace: bool) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace), nn.Flatten(), nn.Linear(60, 8), nn.ReLU(inplace),
        nn.LayerNorm(8), nn.Linear(8, 3),
    ).double()  # fmt: skip


def test_layers_of_an_unknown_module_are_those_that_own_a_weight():
    assert [probe.layer.name for probe in layer_probes(foreign(False))] == ["0", "4", "7"]


def test_in_place_activations_change_no_statistic():
    """Preactivations, and the gradients at them, are those before the activation overwrites them."""
    x, y = batch(2, 6, 5)
    plain, inplace = table(record(foreign(False), x, y)), table(record(foreign(True), x, y))
    assert inplace == plain
    assert plain["4", "q"] > 0


def test_a_layer_that_returns_no_tensor_is_left_out():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))

        def forward(self, x):
            return x @ self.weight, None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    found = table(record(Net(), *batch(4)))
    assert ("pair", "weight_norm") in found
    assert ("pair", "q") not in found


def test_frozen_weights_have_no_gradient_to_measure():
    net = made("mlp", (4,))
    net.hidden[0].requires_grad_(False)
    found = table(record(net, *batch(4)))
    assert ("hidden.0", "q") in found
    assert ("hidden.0", "grad_norm") not in found
    assert ("hidden.1", "grad_norm") in found


def test_hooks_are_removed_with_the_recorder():
    net = made("mlp", (4,))
    record(net, *batch(4))
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 0


def test_the_network_computes_the_same_under_a_recorder():
    x, y = batch(4)
    net, twin = made("mlp", (4,), "relu"), made("mlp", (4,), "relu")
    record(net, x, y)
    F.cross_entropy(twin(x), y).backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b - 0.1 * b.grad)


# --- where a signal first breaks --------------------------------------------------------------------------------------


def test_every_layer_finite():
    net = made("mlp", (4,))
    part = part_of(net)
    assert first_bad_layers(part, lambda: part.forward(batch(4)[0])) == {}


@pytest.mark.parametrize("layer", ["hidden.0", "hidden.1", "readout"])
def test_first_bad_layer(layer):
    net = made("mlp", (4,))
    with torch.no_grad():
        net.get_submodule(layer).weight[0, 0] = math.inf
    part = part_of(net)
    assert first_bad_layers(part, lambda: part.forward(batch(4)[0])) == {0: layer}
    assert sum(len(m._forward_hooks) for m in net.modules()) == 0
