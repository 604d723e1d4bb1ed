"""Rules: planted faults are named at their layer, healthy networks have no findings, sentences hold the numbers."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from initlab.diagnostics import examine
from initlab.diagnostics.rules import judge_network
from initlab.initialize import fill_
from initlab.models import build
from initlab.report.findings.record import SEVERITIES, Finding

SHAPE = (3, 8, 8)
UNSCALED = ("alexnet", "googlenet", "inception", "squeezenet")
# act -> a scheme that keeps signals and gradients alive under it
GOOD = {"relu": "he_normal", "tanh": "critical", "gelu": "critical", "selu": "lecun_normal", "leaky_relu": "he_uniform"}
NETS = [
    ("mlp", "relu", 64),
    ("mlp", "relu", 256),
    ("mlp", "tanh", 128),
    ("mlp", "gelu", 128),
    ("mlp", "selu", 96),
    ("cnn", "relu", 48),
    ("cnn", "tanh", 32),
    ("cnn", "leaky_relu", 48),
]


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def healthy(family: str, act: str, width: int, seed: int = 0, depth: int = 8, **changed) -> nn.Module:
    net = build(family, depth=depth, width=width, act=act, input_shape=SHAPE, classes=10, **changed)
    fill_(net, GOOD[act], act=act, seed=seed)
    return net


def judged(net: nn.Module, x: Tensor | None = None) -> list[Finding]:
    return judge_network(examine(net, batch(64, *SHAPE) if x is None else x, jacobian=False))


def problems(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(v.name, v.sentence) for v in findings if v.severity != "note"]


def named(findings: list[Finding], name: str) -> Finding:
    """Return the finding of this name, which must come before all others that are as bad."""
    found = [v for v in findings if v.name == name]
    assert len(found) == 1, [(v.name, v.layers) for v in findings]
    assert found[0].severity != "note"
    assert found[0].sentence[0].isupper() or found[0].sentence.startswith("'")
    assert found[0].sentence.rstrip().endswith((".", ")"))
    return found[0]


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name.removesuffix(".weight"): p.data for name, p in net.named_parameters() if name.endswith("weight")}


def everywhere(test):
    return pytest.mark.parametrize("seed", [0, 1, 2])(pytest.mark.parametrize(("family", "act", "width"), NETS)(test))


# --- planted faults ---------------------------------------------------------------------------------------------------


@everywhere
def test_one_layer_times_30_is_named(family, act, width, seed):
    net = healthy(family, act, width, seed)
    weights(net)["hidden.4"].mul_(30)
    finding = named(judged(net), "out_of_scale")
    assert finding.layers == ("hidden.4",)
    assert "larger than the other layers" in finding.sentence
    assert finding.remedy.startswith("divide its weights by")


@pytest.mark.parametrize("layer", ["hidden.1", "hidden.6"])
@everywhere
def test_one_zeroed_layer_is_named(family, act, width, seed, layer):
    net = healthy(family, act, width, seed)
    weights(net)[layer].zero_()
    finding = named(judged(net), "zero_layer")
    assert finding.layers == (layer,)
    assert finding.severity == "fault"


@everywhere
def test_two_identical_layers_are_named(family, act, width, seed):
    net = healthy(family, act, width, seed)
    weights(net)["hidden.5"].copy_(weights(net)["hidden.2"])
    assert set(named(judged(net), "identical_layers").layers) == {"hidden.2", "hidden.5"}


@pytest.mark.parametrize("which", ["one", "all"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("family", "act", "width"), [n for n in NETS if n[1] in ("relu", "gelu")])
def test_units_dead_by_a_bias_are_named(family, act, width, seed, which):
    net = healthy(family, act, width, seed)
    layers = [net.hidden[3]] if which == "one" else list(net.hidden)
    for layer in layers:
        layer.bias.data.fill_(-10.0)
    finding = named(judged(net), "dead_units")
    assert finding.layers[0] == ("hidden.3" if which == "one" else "hidden.0")
    assert finding.severity == "fault"
    assert "bias is -10" in finding.sentence
    assert finding.remedy == "start biases at 0"


class Gate(nn.Module):
    """Squeeze and excitation: a narrow pair of layers is fed the mean of each map, which hardly differs by input."""

    def __init__(self, act: type[nn.Module], units: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.fc1, self.act, self.fc2 = nn.Linear(32, units), act(), nn.Linear(units, 32)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.conv(x))
        return (maps * torch.sigmoid(self.fc2(self.act(self.fc1(maps.mean((2, 3))))))[..., None, None]).mean((2, 3))


def gate_to_the_left(act: type[nn.Module], units: int, far: bool) -> nn.Module:
    """A gate all of whose units a fair draw has put left of 0, for every input: one draw of 2^units does so."""
    torch.manual_seed(0)
    net = Gate(act, units)
    nn.init.zeros_(net.fc1.bias)
    x = torch.relu(net.conv(batch(32, 3, 16, 16))).mean((0, 2, 3))
    with torch.no_grad():
        there = net.fc1(x)
        net.fc1.weight.mul_((torch.linspace(3, 6, units) / -there if far else -there.sign())[:, None])
    return net


def gates(test):
    for name, values in (("size", [2, 8]), ("units", [4, 8]), ("act", [nn.ReLU, nn.SiLU, nn.GELU])):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@gates
def test_a_few_units_left_of_zero_by_chance_are_not_dead(act, units, size):
    net = gate_to_the_left(act, units, far=False)
    assert [v for v in judged(net, batch(size, 3, 16, 16)) if v.severity == "fault"] == []
    far = gate_to_the_left(act, units, far=True)
    assert "dead_units" not in [v.name for v in judged(far, batch(size, 3, 16, 16))]


@gates
def test_a_few_units_dead_by_their_bias_are_named(act, units, size):
    net = gate_to_the_left(act, units, far=False)
    nn.init.constant_(net.fc1.bias, -10.0)
    finding = named(judged(net, batch(size, 3, 16, 16)), "dead_units")
    assert (finding.layers, finding.remedy) == (("fc1",), "start biases at 0")


def test_units_close_to_zero_are_not_silent_under_a_smooth_activation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))
    nn.init.normal_(net[0].weight, std=1e-4)
    nn.init.constant_(net[0].bias, -0.1)  # SiLU is nearly linear there
    assert "dead_units" not in [v.name for v in judged(net, batch(32, 64))]


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.Hardswish])
def test_units_dead_by_the_shift_of_a_norm_are_named(act):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), act(), nn.Linear(48, 4))
    nn.init.constant_(net[1].bias, -10.0)
    finding = named(judged(net, batch(32, 64)), "dead_units")
    assert finding.layers == ("0",)
    assert "norm before its activation" in finding.remedy


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("act", "width"), [("sigmoid", 64), ("sigmoid", 256), ("tanh", 64), ("hardtanh", 128)])
def test_a_saturated_stack_is_named(act, width, seed):
    net = build("mlp", depth=6, width=width, act=act, input_shape=SHAPE, classes=10)
    fill_(net, "normal", act=act, seed=seed)  # N(0, 1): √fan_in times too large
    finding = named(judged(net), "saturated_units")
    # Under weights as large as these, sigmoid's gradient keeps its size: it trains, if slowly.
    assert finding.severity == ("warning" if act == "sigmoid" else "fault")
    assert ("The gradient passes all the same" in finding.sentence) == (act == "sigmoid")
    assert len(finding.layers) >= 3
    assert f"inputs of {act}" in finding.sentence
    assert "smaller" in finding.remedy


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
def test_transposed_fans_are_named(act, seed):
    widths = [64, 256, 64, 300, 50, 200]
    net = build("mlp", depth=6, width=widths, act=act, input_shape=SHAPE, classes=10)
    fill_(net, "he_normal", act=act, seed=seed, parameters={"mode": "fan_out"})
    finding = named(judged(net), "scaled_by_fan_out")
    assert "fan_out where the signal sums fan_in" in finding.sentence
    assert "transpose" in finding.remedy
    fill_(net, "he_normal", act=act, seed=seed)
    assert problems(judged(net)) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("act", "width"), [("relu", 64), ("relu", 128), ("leaky_relu", 96)])
def test_a_deep_residual_net_without_branch_scaling_is_named(act, width, seed):
    net = healthy("resmlp", act, width, seed, depth=64)
    finding = named(judged(net), "stream_explodes")
    assert finding.severity == "fault"
    assert "residual stream explodes" in finding.sentence
    assert "1/√64 = 0.12" in finding.remedy
    scaled = healthy("resmlp", act, width, seed, depth=64, branch="inverse_sqrt_depth")
    assert problems(judged(scaled)) == []


# --- healthy networks -------------------------------------------------------------------------------------------------


@everywhere
def test_healthy_networks_have_no_findings(family, act, width, seed):
    assert problems(judged(healthy(family, act, width, seed))) == []


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("family", ["mlp", "cnn", "resmlp", "resnet"])
def test_networks_with_norms_have_no_findings(family, norm, seed):
    depth = 2 if family == "resnet" else 12
    assert problems(judged(healthy(family, "relu", 32, seed, depth=depth, norm=norm))) == []


def test_batch_norms_that_have_seen_no_batch_are_not_blamed_on_the_weights():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), nn.BatchNorm1d(64)

        def forward(self, x):
            return x + self.norm(self.outer(torch.relu(self.inner(x))))

    net = nn.Sequential(nn.Linear(64, 64), *[Block() for _ in range(24)], nn.Linear(64, 10))
    fill_(net, "he_normal", act="relu", gain=2.0)
    assert problems(judged(net, batch(32, 64))) == []
    found = judged(net.eval(), batch(32, 64))  # where the stream grows 10^9 times
    assert problems(found) == []
    note = next(v for v in found if v.name == "idle_norms")
    assert note.sentence.startswith("24 batch norms are in evaluation mode")
    assert "model.train()" in note.remedy
    net.train()(batch(32, 64))
    assert "idle_norms" not in [v.name for v in judged(net.eval(), batch(32, 64))]


def test_branches_that_add_nothing_at_first_have_no_findings():
    from torchvision.ops import StochasticDepth

    class Block(nn.Module):
        def __init__(self, drop: float):
            super().__init__()
            self.inner, self.outer, self.norm = nn.Linear(32, 32), nn.Linear(32, 32), nn.LayerNorm(32)
            self.drop = StochasticDepth(drop, "row")

        def forward(self, x):
            return x + self.drop(self.outer(torch.relu(self.inner(self.norm(x)))))

    torch.manual_seed(0)
    dropped = nn.Sequential(*[Block(0.99) for _ in range(4)], nn.Linear(32, 10))
    assert problems(judged(dropped, batch(2, 32))) == []
    ended = nn.Sequential(*[Block(0.0) for _ in range(4)], nn.Linear(32, 10))
    fill_(ended, "he_normal", act="relu")
    for block in list(ended)[:-1]:
        nn.init.zeros_(block.outer.weight)
    assert problems(judged(ended, batch(16, 32))) == []


def encoder(seed: int = 0, norm_first: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first, dropout=0.0)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers(norm_first):
    net, x = encoder(norm_first=norm_first), batch(8, 12, 32)
    # stacked by deep copies, which is so and worth knowing; drawn each by itself, there is nothing to say
    assert {v.name for v in judged(net, x) if v.severity != "note"} == {"identical_layers"}
    fill_(net, "glorot_uniform", act="relu")
    assert problems(judged(net, x)) == []


def test_a_small_vision_transformer_raises_no_alarm():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(32, 8, num_layers=6, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    assert [v for v in judged(net, batch(8, 3, 32, 32)) if v.severity == "fault"] == []
    fill_(net, "glorot_uniform", act="gelu")
    assert problems(judged(net, batch(8, 3, 32, 32))) == []


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg11", "vit_b_16"))]
)
def test_torchvisions_own_starts_have_no_findings(name):
    from torchvision import models

    torch.manual_seed(0)
    small = {"image_size": 32} if name.startswith("vit") else {}
    net = models.get_model(name, weights=None, num_classes=10, **small)
    size = 32 if name.startswith("vit") else 64
    assert [v for v in judged(net, batch(8, 3, size, size)) if v.severity == "fault"] == []


def classifiers() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", classifiers())
def test_every_classifier_of_torchvision_is_judged(name):
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": False} if name.startswith(("googlenet", "inception")) else {}
    fixed = {"inception": 299, "vit": 224, "maxvit": 224}
    size = next((size for start, size in fixed.items() if name.startswith(start)), 64)
    findings = judged(models.get_model(name, weights=None, **options), batch(2, 3, size, size))
    # started by torch's defaults alone, or by a std that ignores the fans, plain deep chains do lose their gradient
    allowed = {"signal_dies", "gradient_dies", "inputs_alike"} if name.startswith(UNSCALED) else set()
    assert {v.name for v in findings if v.severity == "fault"} <= allowed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("images", "size"), [(2, 32), (4, 64), (8, 96)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "efficientnet_b0", "efficientnet_b1", "regnet_y_400mf", "resnet50"]
)
def test_classifiers_have_no_findings_in_either_mode(name, seed, training, images, size):
    from torchvision import models

    torch.manual_seed(seed)
    net = models.get_model(name, weights=None).train(training)
    assert [v for v in judged(net, batch(images, 3, size, size, seed=seed)) if v.severity == "fault"] == []


# --- known answers ----------------------------------------------------------------------------------------------------


def chain(act: str, scheme: str, depth: int = 30, width: int = 200, **how) -> nn.Module:
    net = build("mlp", depth=depth, width=width, act=act, input_shape=(200,), classes=10)
    fill_(net, scheme, act=act, seed=0, **how)
    return net


@pytest.mark.parametrize(
    ("act", "scheme", "how", "name", "says", "remedy"),
    [
        ("relu", "glorot_normal", {}, "signal_dies", r"0\.7\d?× per layer.*relu needs 1\.41/√fan_in", "he_normal"),
        # torch's own biases keep the signal up, and what they keep up is the same for every input
        ("relu", "torch_default", {}, "gradient_dies", r"0\.4\d?× per layer", "he_normal"),
        ("relu", "torch_default", {}, "inputs_alike", "correlation of two different inputs rises", "he_normal"),
        ("tanh", "torch_default", {}, "gradient_dies", r"std 0\.57\d*/√fan_in; tanh needs 1/√fan_in", "critical"),
        ("tanh", "normal_rule", {"gain": 2.5}, "gradient_explodes", r"1\.\d+× per layer", "tanh needs 1/√fan_in"),
        ("relu", "he_normal", {"gain": 2.0}, "signal_explodes", r"1\.4\d?× per layer", "he_normal"),
        ("sigmoid", "glorot_normal", {}, "gradient_dies", "dies on its way down", "use tanh or relu, or fewer layers"),
    ],
)
def test_known_cases_are_named_in_numbers_with_their_remedy(act, scheme, how, name, says, remedy):
    findings = judged(chain(act, scheme, **how), batch(64, 200))
    finding = named(findings, name)
    assert re.search(says, finding.sentence), finding.sentence
    assert remedy in next(v.remedy for v in findings if v.remedy)


@pytest.mark.parametrize(
    ("act", "scheme", "how"),
    [
        ("relu", "he_normal", {}),
        ("relu", "orthogonal", {"gain": 2**0.5}),
        ("tanh", "critical", {}),
        ("tanh", "glorot_normal", {}),
        ("tanh", "critical_orthogonal", {"sigma_b": 0.1}),
        ("gelu", "critical", {}),
        ("silu", "critical", {}),
        ("selu", "lecun_normal", {}),
        ("linear", "orthogonal", {}),
    ],
)
def test_critical_networks_have_no_findings(act, scheme, how):
    assert problems(judged(chain(act, scheme, **how), batch(64, 200))) == []


def test_inputs_that_become_alike_are_named():
    findings = judged(chain("tanh", "normal_rule", gain=0.9, sigma_b=0.7), batch(64, 200))
    assert "look the same" in named(findings, "inputs_alike").sentence


@pytest.mark.parametrize("name", ["signal_dies", "signal_explodes", "gradient_dies", "gradient_explodes"])
def test_behind_norms_and_unknown_layers_no_rule_judges_scale(name):
    class Mystery(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.eye(64))

        def forward(self, x):
            return torch.sort(x @ self.table)[0]

    torch.manual_seed(0)
    wild = {"signal_dies": 0.1, "gradient_dies": 0.1, "signal_explodes": 4.0, "gradient_explodes": 4.0}[name]
    for between in (lambda: nn.LayerNorm(64), Mystery):
        parts: list[nn.Module] = []
        for _ in range(12):
            linear = nn.Linear(64, 64)
            nn.init.normal_(linear.weight, 0, wild / 8)
            parts += [linear, between(), nn.ReLU()]
        findings = judged(nn.Sequential(*parts, nn.Linear(64, 10)), batch(32, 64))
        assert name not in [v.name for v in findings]


def test_severities_come_worst_first():
    net = healthy("mlp", "relu", 64)
    weights(net)["hidden.1"].zero_()
    weights(net)["hidden.5"].copy_(weights(net)["hidden.2"])
    order = [SEVERITIES.index(v.severity) for v in judged(net)]
    assert order == sorted(order)
    assert len(order) >= 2
    assert math.isfinite(sum(order))
