"""What keeps a network from training: cells with a known cause, told alike by diagnose, by rows and by the forecast."""

import math
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import initlab
from initlab.activations import ACTIVATIONS, activation
from initlab.diagnostics import LayerRecorder, examine
from initlab.diagnostics.layer_recorder import unit_rows
from initlab.diagnostics.rules import judge_network
from initlab.diagnostics.weights import weights_of
from initlab.ensemble import stack
from initlab.initialize import fill_, plan, request
from initlab.inspection import Fans
from initlab.models import build
from initlab.prediction import forecast_network
from initlab.report.diagnosis import explain_directory, explain_run
from initlab.report.findings import (
    Finding,
    LayerStats,
    LoggedLosses,
    NetworkInfo,
    find_start_causes,
    find_training_causes,
)
from initlab.report.findings.network import (
    NONZERO_AT_ZERO,
    PATTERN_SCHEMES,
    STABLE_SCHEMES,
    UNSCALED_SCHEMES,
    USUAL_SATURATION,
)
from initlab.schemes import SCHEMES

WIDTH, INPUTS, CLASSES = 96, 48, 5
ZERO, EQUAL, FLAT = "zero_layer", "copied_units", "saturated_units"
UP, BACK_UP, DIES, BACK_DIES = "signal_explodes", "gradient_explodes", "signal_dies", "gradient_dies"
ALIKE, LOST, OFF = "inputs_alike", "overflow", "weights_off_centre"

# (scheme, activations, depths, gain) -> causes, and why theory knows so.
TABLE: list[tuple[str, str, tuple[int, ...], float | str, set[str], str]] = [
    ("zeros", "tanh relu gelu sigmoid", (3, 10, 30), "paper", {ZERO}, "W = 0"),
    ("ones", "tanh sigmoid", (3, 10, 30), "paper", {EQUAL, FLAT}, "equal rows; sums of fan_in equal terms"),
    ("ones", "relu gelu", (3, 10), "paper", {EQUAL, UP, BACK_UP}, "equal rows; q grows by n² per layer"),
    ("ones", "relu", (30,), "paper", {EQUAL, LOST}, "n⁶⁰ is beyond float32"),
    ("uniform", "tanh", (10, 30), "paper", {FLAT}, "mean 1/2: sums grow as n/2, every tanh is ±1"),
    ("uniform", "sigmoid", (10, 30), "paper", {FLAT, ALIKE}, "mean 1/2: all outputs near 1, for every input"),
    ("uniform", "relu", (10,), "paper", {UP, BACK_UP, ALIKE}, "mean 1/2: one direction grows by n/2 per layer"),
    ("normal", "tanh", (10, 30), "paper", {FLAT, BACK_UP}, "σ_w = √n: chaotic, χ₁ ≫ 1, most units flat"),
    ("normal", "relu gelu", (10, 30), "paper", {UP, BACK_UP}, "σ_w² = n: q grows by n/2 per layer"),
    ("normal", "sigmoid", (10, 30), "paper", {FLAT}, "σ_w = √n: most units flat, χ₁ ≈ 1"),
    ("torch_default", "tanh relu gelu", (3,), "paper", set(), "three layers lose little"),
    ("torch_default", "tanh relu gelu sigmoid", (10, 30), "paper", {BACK_DIES, ALIKE}, "σ_w² = 1/3, biases: ordered"),
    ("glorot_normal", "tanh", (3, 10, 30), "paper", set(), "σ_w = 1 at equal widths: critical"),
    ("glorot_normal", "relu", (30,), "paper", {DIES, BACK_DIES}, "q halves per layer: 2⁻²⁹"),
    ("glorot_normal", "gelu", (30,), "paper", {DIES, BACK_DIES}, "gelu passes less than relu"),
    ("glorot_normal", "sigmoid", (10, 30), "paper", {BACK_DIES, ALIKE}, "φ′ ≤ 1/4: ordered"),
    ("he_normal", "relu tanh", (3, 10, 30), "paper", set(), "critical, and σ_w = 1"),
    ("he_normal", "sigmoid", (10, 30), "paper", {BACK_DIES, ALIKE}, "φ′ ≤ 1/4: ordered"),
    ("he_normal", "gelu", (10,), "paper", set(), "χ₁ = 0.94: ten layers are its limit"),
    ("he_normal", "relu", (10,), 3.0, {UP, BACK_UP}, "q grows by 9/2 per layer"),
    ("critical", "tanh relu gelu", (3, 10, 30), "paper", set(), "χ₁ = 1"),
    ("critical", "sigmoid", (10, 30), "paper", {FLAT}, "χ₁ = 1 at σ_w = 10: flat units, gradients pass"),
    ("orthogonal", "tanh", (3, 10, 30), "paper", set(), "σ_w = 1: critical"),
    ("orthogonal", "relu", (30,), "paper", {DIES, BACK_DIES}, "q halves per layer"),
    ("normal_rule", "tanh", (30,), 3.0, {FLAT, BACK_UP}, "σ_w = 3: chaotic; q* ≈ 6.7, so 40 % are flat"),
    ("normal_rule", "tanh", (30,), 0.5, {DIES, BACK_DIES}, "σ_w = 1/2: q falls by 4 per layer"),
    ("identity", "relu tanh", (3, 10), "paper", set(), "W = I keeps what it is given"),
]
CELLS = [
    pytest.param(scheme, act, depth, gain, causes, id=f"{scheme}-{act}-{depth}-{gain}")
    for scheme, acts, depths, gain, causes, _ in TABLE
    for act in acts.split()
    for depth in depths
]
# Where theory has no rows (constants, weights with a mean), the law of the weights tells as much.
FORESEEN = {FLAT: OFF, UP: OFF, BACK_UP: OFF, ALIKE: OFF, LOST: OFF, EQUAL: EQUAL}


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(64, INPUTS, generator=drawn(0))
Y = torch.randint(CLASSES, (64,), generator=drawn(1))


def network(scheme: str, act: str, depth: int, gain: float | str = "paper", seed: int = 0) -> torch.nn.Module:
    net = build("mlp", depth=depth, width=WIDTH, act=act, input_shape=(INPUTS,), classes=CLASSES)
    fill_(net, scheme, act=act, seed=seed, gain=gain)
    return net


def blamed(found: list[Finding] | tuple[Finding, ...]) -> set[str]:
    return {verdict.name for verdict in found if verdict.severity != "note"}


def taped(net: torch.nn.Module, act: str, x: Tensor = X, y: Tensor = Y) -> list[LayerStats]:
    """What a training writes into layers.csv at step 0, as rules read it."""
    (part,) = stack([net]).parts
    tape = LayerRecorder(part, step=0, interval=activation(act).saturation)
    with tape:
        loss = F.cross_entropy(part.forward(x).reshape(-1, CLASSES), y)
        gradients = torch.autograd.grad(loss, part.parameters, allow_unused=True, materialize_grads=True)
    tape.measure_gradients(dict(zip(part.names, gradients, strict=True)))
    stats: dict[str, dict[str, float]] = {}
    for _, layer, _, stat, value, _ in sorted(tape.rows[0], key=lambda row: row[2]):
        stats.setdefault(layer, {}).update({stat: value} if value == value else {})
    return [LayerStats(layer, own, WIDTH if layer != "readout" else 0) for layer, own in stats.items()]


@lru_cache(maxsize=256)
def told(scheme: str, act: str, depth: int, gain: float | str) -> tuple[list[Finding], list[Finding]]:
    """Causes by diagnose, and by the rows of a run."""
    net = network(scheme, act, depth, gain)
    known = NetworkInfo(act=act, scheme=scheme, model="mlp", depth=depth, gain=str(gain))
    return judge_network(examine(net, X, targets=Y, jacobian=False)), find_start_causes(taped(net, act), known)


def test_the_table_is_large_enough():
    assert len(CELLS) >= 40
    assert len({(cell.values[0], cell.values[1], cell.values[2]) for cell in CELLS}) >= 40


@pytest.mark.parametrize(("scheme", "act", "depth", "gain", "causes"), CELLS)
def test_a_known_cause_is_told_by_diagnose_and_by_rows(scheme, act, depth, gain, causes):
    by_module, by_rows = told(scheme, act, depth, gain)
    assert blamed(by_module) == causes
    assert blamed(by_rows) == causes


@pytest.mark.parametrize(("scheme", "act", "depth", "gain", "causes"), CELLS)
def test_the_forecast_tells_the_same(scheme, act, depth, gain, causes):
    net = network(scheme, act, depth, gain)
    tasks = plan(net, request(scheme, act=act, gain=gain))
    found = forecast_network(net, tasks, X, act=act, classes=CLASSES, gain=gain)
    if scheme in ("ones", "uniform"):
        causes = {FORESEEN[cause] for cause in causes} | ({OFF} if scheme == "ones" else set())
    assert blamed(found.causes) == causes
    limit = re.search(r"trains to about depth (\d+)", found.verdict)
    if limit and int(limit[1]) < depth:
        assert f"and this network has {depth}" in found.verdict
        assert causes or "no layer breaks a bound" in found.verdict
    elif limit and causes & {UP, BACK_UP, DIES, BACK_DIES, ALIKE}:
        assert "ends sooner" in found.verdict


@pytest.mark.parametrize(("scheme", "act", "depth", "gain", "causes"), CELLS)
def test_the_remedy_removes_its_cause(scheme, act, depth, gain, causes):
    for verdict in told(scheme, act, depth, gain)[1]:
        named = re.findall(r"init=(\w+)", verdict.remedy)
        assert scheme not in named
        for other in named:
            assert verdict.name not in blamed(told(other, act, depth, "paper")[1]) or verdict.name == FLAT
        if "init.gain=paper" in verdict.remedy:
            assert verdict.name not in blamed(told(scheme, act, depth, "paper")[1])
        assert named or "init.gain=paper" in verdict.remedy or (scheme, act) == ("critical", "sigmoid")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("act", [name for name in ACTIVATIONS if name in STABLE_SCHEMES and name != "sin"])
def test_what_is_recommended_is_in_order(act, seed):
    net = network(STABLE_SCHEMES[act], act, 8, seed=seed)
    assert blamed(judge_network(examine(net, X, targets=Y, jacobian=False))) - {FLAT} == set()


def test_what_is_said_of_activations_is_so():
    known = {name: act for name, act in ACTIVATIONS.items() if name != "custom"}
    assert {n for n, a in known.items() if float(a(torch.zeros(()))) != 0} == set(NONZERO_AT_ZERO)
    outside = {
        n: sum(math.erfc(abs(b) / math.sqrt(2)) / 2 for b in a.saturation) for n, a in known.items() if a.saturation
    }
    assert {n: round(share, 3) for n, share in outside.items() if share > 0.01} == USUAL_SATURATION
    assert set(known) - set(STABLE_SCHEMES) == {"softplus"}


def test_patterns_are_the_schemes_that_draw_nothing():
    found = set()
    for name, scheme in SCHEMES.items():
        shape = (4, 4, 3, 3) if scheme.block_refusal("dense", (4, 4)) else (4, 4)
        law = scheme.law(Fans(4, 4, 9 if len(shape) > 2 else 1), 1.0, "hidden", shape)
        if law.deterministic and law.distribution != "constant":
            found.add(name)
    assert found == set(PATTERN_SCHEMES)


def test_schemes_that_look_at_no_fan_are_known():
    found = set()
    for name, scheme in SCHEMES.items():
        if scheme.block_refusal("dense", (4, 4)) is None and name not in PATTERN_SCHEMES:
            laws = [scheme.law(Fans(n, n, 1), 1.0, "hidden", (n, n)) for n in (4, 64)]
            if laws[0].variance == pytest.approx(laws[1].variance) and laws[0].mean == pytest.approx(laws[1].mean):
                found.add(name)
    assert found == set(UNSCALED_SCHEMES)


def test_a_stream_that_grows_is_not_blamed_on_weights_that_fit_a_layer():
    for scheme, says in (("he_normal", "model.branch=inverse_sqrt_depth"), ("normal", "init=critical")):
        assert says in NetworkInfo(act="tanh", scheme=scheme, model="resmlp").rescaled("smaller")
        assert "init=critical" in NetworkInfo(act="tanh", scheme="he_normal", model="mlp").rescaled("smaller")


@pytest.mark.parametrize("act", ["tanh", "relu", "sigmoid", "softplus", "custom", ""])
@pytest.mark.parametrize("scheme", ["zeros", "critical", "he_normal", "glorot_normal", "autoinit", "lsuv", ""])
def test_no_remedy_names_what_was_run(scheme, act):
    own = NetworkInfo(act=act, scheme=scheme, model="mlp", depth=10)
    for remedy in (own.at_random(), *(own.rescaled(word) for word in ("smaller", "larger", "other"))):
        assert remedy
        assert not scheme or f"init={scheme}:" not in remedy


def test_causes_come_in_the_order_of_the_layers():
    rows = [
        LayerStats("a", {"q": 1.0, "saturated_fraction": 0.1}),
        LayerStats("b", {"q": 1.0, "dead_fraction": 0.9}),
        LayerStats("c", {"q": 1.0, "saturated_fraction": 0.9}),
        LayerStats("d", {"q": 1.0, "weight_norm": 1.0, "duplicate_units": 7.0}, units=8),
        LayerStats("readout", {"q": 1.0}),
    ]
    found = find_start_causes(rows, NetworkInfo(act="relu6"))
    assert [verdict.layers[0] for verdict in found] == ["b", "c", "d"]
    assert [verdict.name for verdict in found] == ["dead_units", FLAT, EQUAL]


def test_training_counts_the_equal_units_of_each_network():
    nets = [network("ones", "tanh", 3), network("he_normal", "tanh", 3), network("ones", "tanh", 3)]
    torch.nn.init.normal_(nets[2].hidden[1].bias)  # units that differ in their bias are no copies
    counted = []
    for group in (nets, nets[:1], nets[1:2]):
        for part in stack(group).parts:
            tape = LayerRecorder(part, step=0, interval=None)
            tape.measure_gradients(dict(zip(part.names, part.parameters, strict=True)))
            counted += [[v for *_, stat, v, _ in rows if stat == "duplicate_units"] for rows in tape.rows]
            later = LayerRecorder(part, step=5, interval=None)
            later.measure_gradients(dict(zip(part.names, part.parameters, strict=True)))
            assert "duplicate_units" not in {row[3] for row in later.rows[0]}
    equal, drawn_ = [WIDTH - 1.0] * 3 + [CLASSES - 1.0], [0.0] * 4
    assert counted == [equal, drawn_, [WIDTH - 1.0, 0.0, WIDTH - 1.0, CLASSES - 1.0], equal, drawn_]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_units_of_a_convolution_are_compared_within_their_group(groups):
    conv = torch.nn.Conv2d(4, 8, 3, groups=groups)
    rows = unit_rows(conv.weight.detach()[None], conv, "hidden")
    assert torch.equal(rows[0].double(), weights_of(conv)[0].units()[..., :-1])
    assert unit_rows(torch.zeros(1, 5, 3), torch.nn.Embedding(5, 3), "embedding") is None


# ---- theory and measurement side by side


def test_a_depth_beyond_the_forecast_is_said_beside_a_quiet_measurement():
    quiet = [LayerStats(f"hidden.{k}", {"q": 1.0, "grad_mean_square": 1.0}) for k in range(10)]
    row = {"outcome": "stuck", "status": "completed", "depth": 10, "model": "mlp", "act": "tanh", "init": "he_uniform"}
    (found,) = find_start_causes(
        [*quiet, LayerStats("readout")], NetworkInfo(act="tanh", depth=10, trainable_depth=5.4)
    )
    assert (found.name, found.severity) == ("beyond_trainable_depth", "note")
    assert "to about depth 5" in found.sentence
    assert "no layer breaks a bound" in found.sentence
    assert explain_run({**row, "outcome": "trained"}, None) == ""


def test_a_depth_within_the_forecast_is_said_beside_a_loud_measurement():
    loud = [LayerStats(f"hidden.{k}", {"q": 1.0, "grad_mean_square": 10.0**-k}) for k in range(10)]
    for limit, says in ((16.2, "to about depth 16"), (math.inf, "to any depth"), (5.0, "")):
        found = find_start_causes(
            [*loud, LayerStats("readout")], NetworkInfo(act="tanh", depth=10, trainable_depth=limit)
        )
        assert found[0].name == "gradient_explodes"
        assert [verdict.name for verdict in found[1:]] == (["within_trainable_depth"] if says else [])
        assert all(says in verdict.sentence for verdict in found[1:])


def test_rules_and_the_report_need_no_torch():
    program = "import sys, initlab.report.findings, initlab.report.diagnosis; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# ---- training


def noisy(levels: np.ndarray, noise: float, seed: int) -> list[float]:
    return (levels + noise * np.random.default_rng(seed).standard_normal(len(levels))).tolist()


FALLING, LEVEL = np.linspace(2.3, 1.2, 200), np.full(200, 2.3)
DYING = {"dead_fraction": 1.0, "q": 3.0}
RIGHT = np.linspace(0.1, 0.4, 200)


@pytest.mark.parametrize(
    ("losses", "updates", "end", "names"),
    [
        (LoggedLosses(noisy(FALLING, 0.05, 0), noisy(RIGHT, 0.03, 1), 0.01), [1e-3], {}, ["too_few_steps"]),
        (LoggedLosses(noisy(LEVEL, 0.02, 2), noisy(0 * RIGHT + 0.1, 0.03, 3), 0.01), [1e-3], {}, []),
        (LoggedLosses(noisy(LEVEL, 1e-6, 4), (), 1e-9), [1e-9], {}, ["rate_too_small"]),
        (LoggedLosses(noisy(LEVEL[::-1] + np.linspace(0, 9, 200), 0.1, 5), (), 3.0), [0.9], {}, ["rate_too_large"]),
        (LoggedLosses(noisy(LEVEL, 0.02, 6), (), 3.0), [0.9], DYING, ["dead_units", "rate_too_large"]),
        # a loss that comes down to what a network that knows nothing has is not learning
        (LoggedLosses(noisy(FALLING + 1.1, 0.02, 7), noisy(0 * RIGHT + 0.1, 0.03, 8), 0.01), [1e-3], {}, []),
    ],
)  # fmt: skip
def test_training_tells_its_own_causes(losses, updates, end, names):
    moved = [LayerStats("hidden.0", {"update_ratio": ratio}) for ratio in updates]
    last = [
        LayerStats("hidden.0", end, units=64),
        LayerStats("hidden.1", end, units=64),
        LayerStats("readout", {"q": 1.0}),
    ]
    found = find_training_causes(losses, moved, last, NetworkInfo(act="relu", scheme="he_normal"), started=True)
    assert [verdict.name for verdict in found] == names


def test_a_flat_loss_is_seldom_taken_for_learning():
    """A false alarm needs two means of 50 losses to differ by three standard errors: 0.14 %, so 1000 draws give < 8."""
    alarms = sum(
        bool(find_training_causes(LoggedLosses(noisy(LEVEL, 0.1, s)), [], [], NetworkInfo(), started=True))
        for s in range(1000)
    )
    assert alarms < 8


RUNS = {
    ("ones", "tanh", 10, 20, 0.01): ("cannot break symmetry", "saturated", "init=critical"),
    ("uniform", "tanh", 10, 20, 0.01): ("saturated", "No gradient passes", "init=critical"),
    ("zeros", "relu", 10, 20, 0.01): ("Every layer is all zeros", "init=he_normal"),
    ("normal", "relu", 10, 20, 0.01): ("stopped being finite", "signal explodes", "init=he_normal"),
    ("torch_default", "tanh", 12, 20, 0.01): ("gradient dies", "look the same", "init=critical"),
    ("he_normal", "relu", 2, 120, 0.005): ("too few steps", "more steps"),
    ("he_normal", "relu", 3, 30, 1e6): ("rate 1e+06 is too large", "optim.lr=3.3e+05"),
    ("he_normal", "relu", 2, 250, 0.05): (),
}
NEVER = ("any scheme with random weights", "stay zero for ever")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for number, (scheme, act, depth, steps, rate) in enumerate(RUNS):
        own = {"init": scheme, "act": act, "depth": depth, "train.steps": steps, "optim.lr": rate}
        fixed = {"width": 32, "data": "gaussian", "log.tensorboard": False, "sweep.root": str(root)}
        frame = initlab.sweep({**own, **fixed, "sweep.name": f"s{number}"}, quiet=True)
        found[tuple(own.values())] = frame["path"].iloc[0]
    return found


@pytest.mark.parametrize("cell", RUNS, ids=lambda cell: "-".join(map(str, cell)))
def test_a_run_says_what_went_wrong(runs, cell):
    text = explain_directory(Path(runs[cell]))
    for words in RUNS[cell]:
        assert words in text
    assert bool(text) == bool(RUNS[cell]), text
    assert not any(words in text for words in NEVER)
    assert f"init={cell[0]}:" not in text


def test_the_end_of_a_single_run_says_why(tmp_path):
    asked = ["init=zeros", "act=tanh", "depth=3", "width=8", "data=gaussian", "train.steps=3", "log.tensorboard=false"]
    train = Path(__file__).parents[1] / "train.py"
    done = subprocess.run([sys.executable, str(train), *asked], cwd=tmp_path, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("went wrong")]
    assert "Every layer is all zeros" in line
    assert "init=critical" in line
