"""Diagnosis of any module: statistics equal slow oracles, every kind of layer is recorded, and nothing is changed."""

import copy
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initlab
from initlab.activations import ACTIVATIONS
from initlab.diagnostics import STATS, Call, LayerRecorder, diagnose, examine
from initlab.diagnostics.jacobian import choose_jacobians, estimated_samples
from initlab.diagnostics.units import effective_rank
from initlab.diagnostics.weights import Weight
from initlab.ensemble import stack
from initlab.errors import UserError
from initlab.initialize import fill_
from initlab.models import build


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def values(frame, layer: str, index: int | None = None) -> dict[str, float]:
    rows = frame[(frame["layer"] == layer) & (True if index is None else frame["index"] == index)]
    assert not rows["stat"].duplicated().any()
    return dict(zip(rows["stat"], rows["value"], strict=True))


def dense(*sizes: int, act: type[nn.Module] = nn.Tanh, seed: int = 0) -> nn.Sequential:
    """Linear layers 0, 2, 4, … with activations between them, in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), act()]
    return nn.Sequential(*layers[:-1]).double()


# --- statistics against oracles ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tanh_net():
    net, x = dense(5, 7, 6, 3), draw(9, 5, seed=1)
    targets = torch.randint(3, (9,), generator=torch.Generator().manual_seed(2))
    frame = diagnose(net, x, targets=targets)
    signals, h = [], x
    for i, part in enumerate(net):
        h = part(h)
        if i % 2 == 0:
            h.retain_grad()
            signals.append(h)
    loss = F.cross_entropy(h, targets)
    loss.backward()
    return net, x, frame, signals, loss


@pytest.mark.parametrize("position", [0, 1, 2])
def test_moments_and_gradients_equal_autograd(tanh_net, position):
    net, _, frame, signals, _ = tanh_net
    found = values(frame, str(2 * position))
    h = signals[position].detach().tolist()
    flat = [v for row in h for v in row]
    mean = math.fsum(flat) / len(flat)
    assert found["mean"] == pytest.approx(mean, rel=1e-12, abs=1e-15)
    assert found["q"] == pytest.approx(math.fsum(v * v for v in flat) / len(flat), rel=1e-12)
    assert found["std"] == pytest.approx(math.sqrt(math.fsum((v - mean) ** 2 for v in flat) / len(flat)), rel=1e-12)
    gradient = [g for row in signals[position].grad.tolist() for g in row]
    assert found["grad_mean_square"] == pytest.approx(math.fsum(g * g for g in gradient) / len(gradient), rel=1e-10)
    weight = net[2 * position].weight
    assert found["weight_norm"] == pytest.approx(math.sqrt(float(weight.detach().square().sum())), rel=1e-12)
    assert found["grad_norm"] == pytest.approx(math.sqrt(float(weight.grad.square().sum())), rel=1e-10)
    assert found["nonfinite"] == 0


@pytest.mark.parametrize("position", [0, 1, 2])
def test_correlation_is_the_mean_over_pairs(tanh_net, position):
    _, _, frame, signals, _ = tanh_net
    h = signals[position].detach()
    cosines = [float(h[a] @ h[b] / (h[a].norm() * h[b].norm())) for a in range(len(h)) for b in range(len(h)) if a != b]
    assert values(frame, str(2 * position))["c"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-10)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_effective_rank_is_the_entropy_of_singular_values(tanh_net, position):
    net, _, frame, _, _ = tanh_net
    sigma = np.linalg.svd(net[2 * position].weight.detach().numpy(), compute_uv=False)
    p = sigma / sigma.sum()
    assert values(frame, str(2 * position))["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_jacobians_equal_autograd_and_svd(tanh_net, position):
    net, x, frame, _, _ = tanh_net
    part = net[: 2 * position + 1]
    squares = []
    for sample in x[:4]:
        jacobian = torch.autograd.functional.jacobian(part, sample)
        squares.append(np.linalg.svd(jacobian.numpy(), compute_uv=False) ** 2)
    found = values(frame, str(2 * position))
    assert found["jacobian_mean"] == pytest.approx(np.mean(squares), rel=1e-9)
    assert found["jacobian_var"] == pytest.approx(np.mean([np.var(s) for s in squares]), rel=1e-9)
    assert found["jacobian_max"] == pytest.approx(np.mean([s.max() for s in squares]), rel=1e-9)


def test_the_network_as_a_whole(tanh_net):
    _, x, frame, _, loss = tanh_net
    assert values(frame, "(model)") == pytest.approx({"loss": loss.item(), "ln_classes": math.log(3)})
    assert values(frame, "(input)")["q"] == pytest.approx(float(x.square().mean()))
    assert list(frame.columns) == ["step", "layer", "index", "stat", "value", "source"]
    assert set(frame["source"]) == {"measured"}
    assert set(frame["step"]) == {0}


def test_estimated_jacobians_agree_with_exact_ones():
    net, x = dense(30, 40, 1200), draw(3, 30)
    exact = [torch.linalg.svdvals(torch.autograd.functional.jacobian(net, s)) ** 2 for s in x]
    found = values(diagnose(net, x, jacobian=True), "2")
    assert found["jacobian_max"] == pytest.approx(float(torch.stack([s.max() for s in exact]).mean()), rel=1e-6)
    # the mean and the variance come from two probes a sample: the relative error of each is about √(2/(2·30)/3)
    assert found["jacobian_mean"] == pytest.approx(float(torch.stack(exact).mean()), rel=0.5)
    assert "jacobian_mean" not in values(diagnose(net, x, jacobian=False), "2")


@pytest.mark.parametrize(("out", "inputs"), [(1100, 1300), (1300, 1100)])
def test_ranks_of_large_weights_are_estimated(out, inputs):
    weight = draw(out, inputs) @ torch.diag(torch.linspace(0.2, 1, inputs, dtype=torch.float64))
    sigma = torch.linalg.svdvals(weight)
    p = sigma / sigma.sum()
    assert float(effective_rank(weight[None, None])[0]) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=0.06)
    assert float(effective_rank(torch.ones(1, 1, out, inputs).double())[0]) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(torch.zeros(1, 1, out, inputs).double())[0]) == 0


def test_convolutions_count_positions_as_samples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    with torch.no_grad():
        net[0].bias[1] = -100.0
        net[0].weight[3] = net[0].weight[2]
        net[0].bias[3] = net[0].bias[2]
    x = draw(5, 2, 6, 6)
    h = net[0](x)
    found = examine(net, x)
    call = found.calls[0]
    assert (call.samples, call.units) == (5 * 16, 4)
    assert call.stats["dead_fraction"] == 0.25
    assert call.stats["duplicate_units"] == 1
    flat = h.detach().flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    assert call.stats["c"] == pytest.approx(float((cosines.sum() - 5) / 20), rel=1e-10)
    # the singular values of both groups together
    sigma = torch.cat([torch.linalg.svdvals(part.flatten(1)) for part in net[0].weight.detach().split(2)])
    p = sigma[sigma > 1e-12] / sigma.sum()
    assert call.stats["effective_rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)


# --- counts by hand ---------------------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    """h = x · 1 for one input number per unit, then φ given as a function."""

    def __init__(self, phi, units: int):
        super().__init__()
        self.layer = nn.Linear(units, units, bias=False)
        self.phi = phi
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(units))

    def forward(self, x):
        return self.phi(self.layer(x))


SILENT = torch.tensor([[-1.0, -2.0, 3.0, 0.0], [-5.0, 1.0, 2.0, -1.0]])  # units 0 and 3 are never above 0


@pytest.mark.parametrize(
    "phi",
    [
        torch.relu,
        F.relu,
        lambda h: h.relu(),
        lambda h: h.relu_(),
        lambda h: F.relu(h, inplace=True),
        lambda h: h.clamp(min=0),
        lambda h: torch.clamp(h, 0),
        lambda h: F.threshold(h, 0, 0),
        nn.ReLU(),
        nn.ReLU(inplace=True),
    ],
)
def test_dead_units_are_counted_however_relu_is_written(phi):
    found = examine(OneLayer(phi, 4), SILENT)
    assert found.calls[0].activation is ACTIVATIONS["relu"]
    assert found.calls[0].stats["dead_fraction"] == 0.5
    assert found.calls[0].stats["mean"] == pytest.approx(float(SILENT.mean()))


LOUD = torch.tensor([[0.0, 3.0, -3.0, 1.0], [5.0, 0.5, 2.1, -2.3]])  # |h| > 2.18: 3, −3, 5, −2.3


@pytest.mark.parametrize("phi", [torch.tanh, F.tanh, lambda h: h.tanh(), lambda h: h.tanh_(), nn.Tanh()])
def test_saturated_preactivations_are_counted_however_tanh_is_written(phi):
    found = examine(OneLayer(phi, 4), LOUD)
    assert found.calls[0].activation is ACTIVATIONS["tanh"]
    assert found.calls[0].stats["saturated_fraction"] == 0.5


MODULES = {
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "softplus": nn.Softplus(beta=2.0),
    "elu": nn.ELU(alpha=0.5),
    "celu": nn.CELU(alpha=2.0),
    "leaky_relu": nn.LeakyReLU(0.3),
    "prelu": nn.PReLU(init=0.1),
}


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n not in ("linear", "hardsigmoid")])
def test_every_activation_is_recognized(name):
    module = MODULES.get(name) or ACTIVATIONS[name].build()
    act = examine(OneLayer(module, 3), draw(4, 3, dtype=torch.float32)).calls[0].activation
    assert act is not None
    assert act.name == name
    x = draw(50, dtype=torch.float32)
    inner = 30 * x if name == "sin" else x  # the factor inside a sine is part of its argument
    assert torch.allclose(act(inner), module(x), atol=1e-6)


@pytest.mark.parametrize(
    "phi",
    [lambda h: h * torch.sigmoid(h), lambda h: 0.5 * h * (1 + torch.erf(h / 2**0.5)), lambda h: torch.sigmoid(h) * h],
)
def test_a_self_gated_unit_is_no_sigmoid(phi):
    call = examine(OneLayer(phi, 4), LOUD).calls[0]
    assert call.activation is None
    assert "saturated_fraction" not in call.stats


@pytest.mark.parametrize(
    ("fill", "copies", "rank"),
    [(nn.init.zeros_, 5, 0.0), (nn.init.ones_, 5, 1.0), (lambda w: nn.init.constant_(w, 0.3), 5, 1.0)],
)
def test_symmetry_of_constants(fill, copies, rank):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    fill(net[0].weight)
    nn.init.zeros_(net[0].bias)
    found = values(diagnose(net, draw(3, 4, dtype=torch.float32)), "0")
    assert found["duplicate_units"] == copies
    assert found["effective_rank"] == pytest.approx(rank, abs=1e-6)


def test_different_biases_make_different_units():
    net = nn.Linear(4, 6)
    nn.init.ones_(net.weight)
    assert values(diagnose(net, draw(3, 4, dtype=torch.float32)), "")["duplicate_units"] == 0


def test_nonfinite_values_are_counted_and_do_no_harm():
    net = dense(4, 4, 3).float()
    with torch.no_grad():
        net[0].weight[1, 1] = math.inf
        net[2].weight[0, 0] = math.nan
    frame = diagnose(net, draw(6, 4, dtype=torch.float32))
    assert values(frame, "0")["nonfinite"] == 6
    assert values(frame, "2")["nonfinite"] >= 6
    assert "effective_rank" not in values(frame, "0")


# --- underflow is not zero --------------------------------------------------------------------------------------------


def small(depth: int, factor: float) -> nn.Sequential:
    net = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(depth)])
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(factor * torch.linalg.qr(draw(8, 8, dtype=torch.float32)).Q)
    return net


def test_underflow_is_not_zero():
    depth, factor = 60, 0.1
    found = examine(small(depth, factor), draw(4, 8, dtype=torch.float32))
    q = [call.stats["q"] for call in found.calls]
    start = float(draw(4, 8, dtype=torch.float32).square().mean())
    assert q == pytest.approx([start * factor ** (2 * k) for k in range(1, depth + 1)], rel=1e-4)
    lost = [call.index for call in found.calls if call.stats.get("underflow") == 32]
    assert lost == list(range(lost[0], depth + 1))
    assert 37 <= lost[0] <= 40  # below 1.2e-38 float32 loses digits, below 1.4e-45 everything
    low = [call for call in found.calls if call.stats.get("grad_underflow") == 32]
    assert [call.index for call in low] == list(range(1, len(low) + 1))
    assert all(call.stats["grad_mean_square"] > 0 for call in found.calls)


def test_a_true_zero_stays_zero():
    net = dense(4, 5, 5, 3, act=nn.ReLU).float()
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    frame = diagnose(net, draw(6, 4, dtype=torch.float32))
    assert values(frame, "2")["q"] == 0
    assert values(frame, "0")["grad_mean_square"] == 0
    assert not {"underflow", "grad_underflow"} & {*values(frame, "0"), *values(frame, "2")}


# --- the same numbers as the recorder of the training loop ------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        ("mlp", (6,), {}),
        ("mlp", (6,), {"norm": "layer"}),
        ("cnn", (2, 6, 6), {}),
        ("cnn", (2, 6, 6), {"norm": "batch"}),
        ("resmlp", (6,), {}),
        ("resmlp", (6,), {"norm": "layer"}),
        ("resnet", (2, 8, 8), {"norm": "batch"}),
        ("resnet", (2, 8, 8), {"norm": "none"}),
    ],
)
@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_families_measure_what_the_recorder_measures(model, shape, options, act):
    net = build(model, depth=2, width=5, act=act, input_shape=shape, classes=4, **options)
    fill_(net, "glorot_normal", act=act, sigma_b=0.2)
    x = draw(8, *shape, dtype=torch.float32)
    y = torch.randint(4, (8,), generator=torch.Generator().manual_seed(3))
    frame = diagnose(net, x, targets=y)
    part = stack([copy.deepcopy(net)]).parts[0]
    recorder = LayerRecorder(part, step=0, interval=ACTIVATIONS[act].saturation)
    with recorder:
        loss = F.cross_entropy(part.forward(x)[0], y)
        gradients = torch.autograd.grad(loss, part.parameters)
    recorder.measure_gradients(dict(zip(part.names, gradients, strict=True)))
    recorded = {(layer, index, stat): value for _, layer, index, stat, value, _ in recorder.rows[0]}
    mine = {(row.layer, row.index, row.stat): row.value for row in frame.itertuples()}
    assert set(recorded) <= set(mine)
    for key, value in recorded.items():
        assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-12), key


# --- any module -------------------------------------------------------------------------------------------------------


class Bare(nn.Module):
    """Weights that are no layers, used in every way round."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(draw(6, 10, seed=1))
        self.shift = nn.Parameter(draw(10, seed=2))
        self.second = nn.Parameter(draw(7, 10, seed=3))
        self.third = nn.Parameter(draw(5, 7, seed=4))

    def forward(self, x):
        x = torch.tanh(x @ self.first + self.shift)
        x = F.relu(F.linear(x, self.second))
        return torch.matmul(x, self.third.T)


def test_bare_parameters_are_layers_too():
    net, x = Bare(), draw(9, 6)
    found = examine(net, x)
    h = x @ net.first + net.shift
    assert [call.layer for call in found.calls] == ["first", "second", "third"]
    assert [call.activation and call.activation.name for call in found.calls] == ["tanh", "relu", None]
    assert found.calls[0].stats["q"] == pytest.approx(h.square().mean().item())
    assert [(call.facts.fan_in, call.facts.fan_out) for call in found.calls] == [(6, 10), (10, 7), (7, 5)]
    assert [call.facts.units for call in found.calls] == [10, 7, 5]


class Branchy(nn.Module):
    """A layer used twice, one never used, a dictionary for output."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.shared(x).relu()
        return {"features": h, "logits": self.head(self.shared(h))}


def test_repeated_and_idle_layers():
    net, x = Branchy().double(), draw(5, 4)
    found = examine(net, x)
    assert [(call.index, call.layer, call.ran) for call in found.calls] == [
        (1, "shared", True),
        (2, "shared", True),
        (3, "head", True),
        (4, "idle", False),
    ]
    once, twice = (found.calls[i].stats for i in (0, 1))
    assert once["q"] == pytest.approx(net.shared(x).square().mean().item())
    assert twice["q"] == pytest.approx(net.shared(net.shared(x).relu()).square().mean().item())
    assert "weight_norm" in once
    assert "weight_norm" not in twice
    assert set(found.calls[3].stats) == {"weight_norm", "effective_rank", "duplicate_units"}
    assert found.classes == 3


def test_attention_shows_its_packed_projections():
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 2, batch_first=True).double()
    x = draw(3, 5, 8)
    found = examine(net, [x, x, x])
    assert [call.layer for call in found.calls] == ["q", "k", "v", "out_proj"]
    for i, call in enumerate(found.calls[:3]):
        rows = slice(8 * i, 8 * i + 8)
        h = x @ net.in_proj_weight[rows].T + net.in_proj_bias[rows]
        assert call.stats["q"] == pytest.approx(h.square().mean().item())
        assert call.stats["weight_norm"] == pytest.approx(net.in_proj_weight[rows].norm().item())
    out = net(x, x, x)[0]
    assert found.calls[3].stats["q"] == pytest.approx(out.square().mean().item())
    assert "grad_mean_square" in found.calls[3].stats


class Tagger(nn.Module):
    """Tokens, a recurrent layer, a head tied to the embedding."""

    def __init__(self, cell):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.cell = cell
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.cell(self.embed(tokens))[0])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_and_tied_heads(cell):
    torch.manual_seed(0)
    net = Tagger(cell(6, 6, 2, batch_first=True))
    tokens = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(1))
    found = examine(net, tokens)
    layers = [call.layer for call in found.calls]
    assert layers[0] == "embed"
    assert layers[-2:] == ["cell", "head"]
    assert {f"cell.weight_{part}_l{k}" for part in ("ih", "hh") for k in (0, 1)} <= set(layers)
    assert all(call.ran for call in found.calls)
    assert found.calls[-1].facts.tied == "embed.weight"
    assert (found.objective, found.classes) == ("cross-entropy", 11)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformers(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    found = examine(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), draw(4, 5, 8, dtype=torch.float32)
    )
    assert sum(call.layer.endswith("linear1") for call in found.calls) == 2
    assert all(call.activation.name == "relu" for call in found.calls if call.layer.endswith("linear1"))
    assert len(found.sums) == 4
    both = examine(
        nn.Transformer(8, 2, 1, 1, 16, batch_first=True, norm_first=norm_first),
        {"src": draw(3, 5, 8, dtype=torch.float32), "tgt": draw(3, 4, 8, dtype=torch.float32)},
    )
    assert {"decoder.layers.0.multihead_attn.k", "encoder.layers.0.self_attn.out_proj"} <= {c.layer for c in both.calls}
    assert all(call.ran for call in both.calls)


@pytest.mark.parametrize("wrap", ["weight_norm", "old_weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights(wrap):
    make = {
        "weight_norm": nn.utils.parametrizations.weight_norm,
        "old_weight_norm": nn.utils.weight_norm,
        "spectral_norm": nn.utils.parametrizations.spectral_norm,
    }[wrap]
    net = nn.Sequential(make(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = examine(net, draw(6, 4, dtype=torch.float32))
    assert [call.layer for call in found.calls if call.ran] == ["0", "2"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert found.calls[0].stats["weight_norm"] == pytest.approx(net[0].weight.norm().item(), rel=1e-2)


def test_a_sum_of_branch_and_stream_is_noted():
    net = build("resmlp", depth=3, width=8, act="relu", input_shape=(4,), classes=2)
    found = examine(net, draw(16, 4, dtype=torch.float32))
    assert [one.name for one in found.sums] == ["blocks.0", "blocks.1", "blocks.2"]
    for one, two in pairwise(found.sums):
        assert one.total == pytest.approx(two.stream)


def test_wrappers_are_looked_through():
    inner = dense(4, 5, 3).float()
    plain = diagnose(inner, draw(6, 4, dtype=torch.float32))
    wrapped = diagnose(nn.DataParallel(inner), draw(6, 4, dtype=torch.float32))
    assert plain.equals(wrapped)


def test_it_is_reached_from_the_top():
    assert initlab.diagnose is diagnose
    assert {"c", "effective_rank", "duplicate_units", "jacobian_mean", "jacobian_var"} <= set(STATS)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "loss"),
    [
        ({"targets": torch.tensor([0, 2, 1])}, lambda out: F.cross_entropy(out, torch.tensor([0, 2, 1]))),
        ({"targets": torch.ones(3, 3).double()}, lambda out: (out - 1).square().mean()),
        ({"loss": lambda out: out.abs().sum()}, lambda out: out.abs().sum()),
        ({"loss": lambda out, y: (out * y).sum(), "targets": 2.0}, lambda out: (out * 2).sum()),
    ],
)
def test_the_loss_is_the_one_asked_for(arguments, loss):
    net, x = dense(4, 5, 3), draw(3, 4)
    frame = diagnose(net, x, **arguments)
    out = net(x)
    out.retain_grad()
    expected = loss(out)
    expected.backward()
    assert values(frame, "(model)")["loss"] == pytest.approx(expected.item())
    assert values(frame, "2")["grad_mean_square"] == pytest.approx(float(out.grad.square().mean()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": torch.tensor([0, 3, 1])}, "targets go up to 3, and the output has 3 classes"),
        ({"targets": torch.tensor([0, 1])}, "one label for each"),
        ({"targets": torch.ones(3, 2).double()}, "they must agree"),
        ({"classes": 7}, "classes=7 is not an axis of the output"),
        ({"loss": lambda out: out}, "one number"),
    ],
)
def test_targets_that_do_not_fit(arguments, words):
    with pytest.raises(UserError, match=words):
        diagnose(dense(4, 5, 3), draw(3, 4), **arguments)


# --- nothing is changed -----------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Everything that a forward pass can move: running statistics, dropout, counters, caches, foreign generators."""

    def __init__(self, fails: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(4, 3)
        self.fails = fails
        self.calls = 0
        self.seen: list[int] = []
        self.cache: Tensor | None = None

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        random.random()
        np.random.rand()  # noqa: NPY002
        x.mul_(2)  # in place, on what it was given
        h = self.drop(self.norm(self.conv(x)).relu_()).mean((2, 3))
        self.cache = h
        if self.fails:
            raise RuntimeError("broken off")
        return self.head(self.frozen(h))


def state_of(net: nn.Module, x: Tensor) -> dict:
    return {
        "values": {k: v.clone() for k, v in net.state_dict().items()},
        "grads": {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()},
        "ids": {k: (id(p), p.data_ptr(), p.requires_grad) for k, p in net.named_parameters()},
        "buffers": {k: id(b) for k, b in net.named_buffers()},
        "modes": [m.training for m in net.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        "own": (net.calls, list(net.seen), net.cache),
        "x": x.clone(),
        "rng": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "fast": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
    }


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("surrounding", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_everything_is_left_as_found(fails, mode, surrounding):
    net, x = Busy(fails), draw(4, 2, 6, 6, dtype=torch.float32)
    net.train(mode != "eval")
    net.norm.train(mode == "train")
    net.head.weight.grad = torch.ones_like(net.head.weight)
    calls = []
    handle = net.conv.register_forward_hook(lambda *_: calls.append(1))
    before = state_of(net, x)
    with surrounding():
        inside = torch.is_grad_enabled()
        if fails:
            with pytest.raises(RuntimeError, match="broken off"):
                diagnose(net, x)
        else:
            diagnose(net, x, jacobian=True)
        assert torch.is_grad_enabled() == inside
    after = state_of(net, x)
    assert [key for key in before if not same(before[key], after[key])] == []
    assert calls  # the user's own hooks run, and can still be taken off
    handle.remove()
    assert not net.conv._forward_hooks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_generators_are_left_as_found():
    net, x = Busy().cuda(), draw(4, 2, 6, 6, dtype=torch.float32).cuda()
    before = torch.cuda.get_rng_state_all()
    assert "q" in values(diagnose(net, x), "head")
    assert same(before, torch.cuda.get_rng_state_all())


def test_two_looks_agree():
    net, x = Busy(), draw(4, 2, 6, 6, dtype=torch.float32)
    assert diagnose(net, x).equals(diagnose(net, x))
    assert not diagnose(net, x, seed=1).equals(diagnose(net, x))


# --- what cannot be diagnosed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.ReLU(), "has no parameters"),
        (nn.LazyLinear(3), "lazy and has no shape"),
        (nn.Linear(3, 3, device="meta"), "on the meta device"),
        (torch.relu, "needs a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_modules_that_cannot_be_diagnosed(module, words):
    with pytest.raises(UserError, match=words) as raised:
        diagnose(module, torch.ones(2, 3))
    assert len(str(raised.value).splitlines()) == 1


class Weighing(nn.Module):
    """No layer of torch's around its product."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 2))

    def forward(self, x, scale=1.0):
        if len(x) > 9:
            raise RuntimeError("no more than nine")
        return x @ self.w * scale


@pytest.mark.parametrize(
    ("module", "batch", "words"),
    [
        (nn.Sequential(nn.Linear(3, 2)), torch.ones(5, 4), r"shape 5x4: layer 0 \(Linear\) expects 3 numbers .* 5x4\."),
        (nn.Linear(3, 2), torch.ones(5, 3).double(), "Linear expects numbers of torch.float32 and got torch.float64"),
        (nn.Linear(3, 2), torch.ones(5, 3).long(), "Linear expects numbers of torch.float32 and got torch.int64"),
        (nn.Conv2d(3, 2, 3), torch.ones(2, 1, 8, 8), "Conv2d expects inputs Nx3xHxW and got 2x1x8x8"),
        (nn.Embedding(5, 2), torch.full((2, 3), 7), "Embedding expects whole numbers below 5 and got numbers up to 7"),
        (nn.Embedding(5, 2), torch.full((2, 3), -1), "expects whole numbers below 5 and got numbers from -1 to -1"),
        (nn.BatchNorm1d(4), torch.ones(1, 4), "more than one value per channel in training mode and got 1x4"),
        (nn.Linear(3, 2), [torch.ones(5, 3), torch.ones(5)], r"too many positional .* its forward takes \(input\)"),
        (Weighing(), {"y": torch.ones(5, 3)}, r"its forward takes \(x, scale\)"),
        (Weighing(), torch.ones(5, 4), r"failed on a batch of shape 5x4, in Weighing \(RuntimeError: .*multiplied"),
    ],
)
def test_batches_that_a_module_cannot_take(module, batch, words):
    with pytest.raises(UserError, match=words) as raised:
        diagnose(module, batch)
    assert len(str(raised.value).splitlines()) == 1
    assert "--" not in str(raised.value)
    assert isinstance(raised.value.__cause__, (RuntimeError, TypeError, ValueError, IndexError))
    assert not isinstance(raised.value.__cause__, UserError)


def test_what_a_modules_own_code_raises_comes_through():
    with pytest.raises(RuntimeError, match=r"^no more than nine$"):
        diagnose(Weighing(), torch.ones(10, 3))
    with pytest.raises(RuntimeError, match="must match"):  # about the targets: the batch itself fits
        diagnose(Weighing(), torch.ones(4, 3), targets=torch.ones(5, 7), loss=lambda out, y: (out - y).mean())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": [0, 1]}, "targets are a list: give a tensor"),
        ({"targets": torch.tensor([0, -1])}, "targets hold -1: labels are counted from 0"),
        ({"targets": torch.tensor([-100, -1])}, "targets hold -1: labels are counted from 0"),
        ({"loss": "mse"}, "loss='mse' must be a function"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number from 0"),
    ],
)
def test_arguments_that_cannot_be(arguments, words):
    with pytest.raises(UserError, match=words):
        diagnose(nn.Linear(3, 3), torch.ones(2, 3), **arguments)


def test_a_batch_of_nothing():
    with pytest.raises(UserError, match=r"holds no sample, its shape is \[0, 3\]"):
        diagnose(nn.Linear(3, 3), torch.ones(0, 3))


@pytest.mark.parametrize("batch", [[], {}, torch.tensor(1.0)])
def test_batches_without_samples(batch):
    with pytest.raises(UserError, match="axis of samples"):
        diagnose(nn.Linear(3, 3), batch)


# --- torchvision ------------------------------------------------------------------------------------------------------


def vision(name: str) -> nn.Module:
    from torchvision import models

    options = {"init_weights": False} if name.startswith(("googlenet", "inception")) else {}
    torch.manual_seed(0)
    return models.get_model(name, weights=None, **options)


def size_of(name: str) -> int:
    fixed = {"inception": 299, "vit_h": 224, "vit": 224, "maxvit": 224}
    return next((size for start, size in fixed.items() if name.startswith(start)), 64)


def check_classifier(name: str) -> None:
    net = vision(name)
    x = draw(2, 3, size_of(name), size_of(name), dtype=torch.float32)
    if name.startswith("inception"):
        x = draw(2, 3, 299, 299, dtype=torch.float32)
    found = examine(net, x, jacobian=False)
    assert found.classes == 1000
    assert math.isfinite(found.loss)
    assert all(call.ran for call in found.calls)
    assert any(call.activation is not None for call in found.calls)
    parts = ("q", "k", "v")
    for call in found.calls:
        assert call.stats["q"] >= 0
        assert math.isfinite(call.stats["q"])
        assert call.layer.rpartition(".")[2] in parts or "grad_mean_square" in call.stats, call.layer
    layers = {call.layer for call in found.calls}
    owners = {n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert owners <= layers


FAST = ("resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5")


@pytest.mark.parametrize("name", FAST)
def test_small_classifiers_of_torchvision(name):
    check_classifier(name)


def classifiers() -> list[str]:
    from torchvision import models

    return [name for name in models.list_models(module=models) if name not in FAST]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", classifiers())
def test_every_classifier_of_torchvision(name):
    check_classifier(name)


# --- what a look costs ------------------------------------------------------------------------------------------------


def passes(module: nn.Module, *shape: int, **how) -> int:
    """Forward passes of the whole module during one diagnosis."""
    count = 0

    def seen(*_):
        nonlocal count
        count += 1

    handle = module.register_forward_pre_hook(seen)
    try:
        diagnose(module, draw(*shape, dtype=torch.float32), **how)
    finally:
        handle.remove()
    return count


@pytest.mark.parametrize("training", [True, False])
def test_a_large_network_is_run_once(training):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    assert passes(resnet18().train(training), 2, 3, 64, 64) == 1


def layer(index: int, outputs: int, multiplications: int) -> Call:
    weight = Weight("w", "w", "dense", torch.empty(multiplications, 1, device="meta"), nn.Identity())
    return Call(index, f"l{index}", weight, samples=8, units=outputs)


def test_jacobians_have_a_bounded_cost_even_where_they_are_asked_for():
    small, large = [layer(1, 64, 10**4), layer(2, 10, 10**4)], [layer(1, 64, 10**4), layer(2, 1000, 10**9)]
    assert choose_jacobians(small, 8, 4, None) == ({1, 2}, set())
    assert choose_jacobians(large, 8, 4, None) == ({1}, {2})
    assert choose_jacobians(large, 8, 4, 1e10) == ({1}, set())
    assert (estimated_samples(small, 8, 4), estimated_samples(large, 8, 4)) == (4, 1)


def test_a_costly_output_is_estimated_from_one_sample(monkeypatch):
    net, x = dense(6, 9, 5), draw(8, 6)
    exact = values(diagnose(net, x[:1], jacobian=True), "2")
    monkeypatch.setattr("initlab.diagnostics.jacobian.MAX_MULTIPLICATIONS", 1e3)
    found = values(diagnose(net, x, jacobian=True), "2")
    assert found["jacobian_max"] == pytest.approx(exact["jacobian_max"], rel=1e-6)
    assert found["jacobian_mean"] == pytest.approx(exact["jacobian_mean"], rel=0.5)
