"""Gains, fixed points and critical points: reference values, and what every one of them must satisfy."""

import math

import numpy as np
import pytest
import torch

from initlab.activations import ACTIVATIONS, activation
from initlab.errors import UserError
from initlab.theory import (
    c_map,
    c_map_slope,
    chi_1,
    chi_q,
    critical,
    critical_line,
    default_critical,
    derived_gain,
    doubly_critical,
    fixed_point,
    gains,
    phase_diagram,
    q_map,
)

NAMES = list(ACTIVATIONS)
TIGHT = 1e-9
CRITICAL_NAMES = [name for name in NAMES if name != "softplus"]
SCALE_FREE = ("linear", "relu", "leaky_relu", "prelu")
HALF_STABLE = ("gelu", "gelu_tanh", "silu", "mish", "hardswish")


def test_this_file_knows_the_registry():
    assert {*SCALE_FREE, *HALF_STABLE, "softplus"} < set(NAMES)


@pytest.mark.parametrize(
    ("act", "forward", "backward"),
    [
        ("linear", 1.0, 1.0),
        ("relu", 1.414213562373, 1.414213562373),
        (("leaky_relu", {"negative_slope": 0.2}), 1.386750490563, 1.386750490563),
        ("tanh", 1.592537419723, 1.467413591631),
        ("erf", 1.467166950489, 1.325218352861),
        ("selu", 1.0, 0.966025776974),
    ],
)
def test_gains_are_the_reference_values(act, forward, backward):
    assert gains(act).forward == pytest.approx(forward, abs=6e-13)
    assert gains(act).backward == pytest.approx(backward, abs=6e-13)


@pytest.mark.parametrize(
    ("act", "sigma_b", "sigma_w", "q_star", "slope"),
    [
        ("tanh", 0.05**0.5, 1.3270096607, 0.5700478816, 0.518186),
        ("tanh", 0.3, 1.3955839752, 0.7634747669, 0.451640),
        ("tanh", 1.0, 1.8555891011, 3.0363963946, 0.186371),
        ("erf", 0.05**0.5, 1.1729616393, 0.5171768380, 0.491557),
        ("selu", 0.1, 0.8719131612, 0.3089416381, 0.787377),
    ],
)
def test_critical_points_are_the_reference_values(act, sigma_b, sigma_w, q_star, slope):
    point = critical(act, sigma_b=sigma_b)
    assert point.sigma_w == pytest.approx(sigma_w, abs=6e-11)
    assert point.q_star == pytest.approx(q_star, abs=6e-11)
    assert point.chi_q == pytest.approx(slope, abs=6e-7)
    assert (point.kind, point.stable, point.sigma_b) == ("stable", True, sigma_b)


@pytest.mark.parametrize(
    ("act", "variance", "q_star", "slope", "c_star", "xi_c", "phase"),
    [
        ("tanh", 1.00, 0.19359252, 0.75903165, 1.0, 3.6270, "ordered"),
        ("tanh", 1.25, 0.29205430, 0.86323959, 1.0, 6.7998, "ordered"),
        ("tanh", 2.00, 0.72176187, 1.04766600, 0.74408242, 25.2134, "chaotic"),
        ("tanh", 4.00, 2.19549393, 1.34240241, 0.16506496, 6.9803, "chaotic"),
        ("erf", 1.00, 0.28842669, 0.86759458, 1.0, 7.0407, "ordered"),
    ],
)
def test_fixed_points_are_the_reference_values(act, variance, q_star, slope, c_star, xi_c, phase):
    point = fixed_point(act, variance**0.5, 0.05**0.5)
    assert point.q_star == pytest.approx(q_star, abs=6e-9)
    assert point.chi_1 == pytest.approx(slope, abs=6e-9)
    assert point.c_star == pytest.approx(c_star, abs=6e-9)
    assert point.xi_c == pytest.approx(xi_c, abs=6e-5)
    assert (point.kind, point.phase) == ("stable", phase)
    assert point.trainable_depth == 6 * point.xi_c


def test_gelu_is_doubly_critical_where_it_should_be():
    point = doubly_critical("gelu")
    assert point.sigma_w**2 == pytest.approx(1.98305826, abs=6e-9)
    assert point.sigma_b**2 == pytest.approx(0.17292239, abs=6e-9)
    assert point.chi_q == pytest.approx(1.0, abs=1e-9)
    assert float(chi_1("gelu", point.q_star, point.sigma_w)) == pytest.approx(1.0, abs=TIGHT)
    assert (point.kind, point.stable) == ("half_stable", False)


def test_swish_is_doubly_critical_where_roberts_yaida_and_hanin_put_it():
    # The principles of deep learning theory, section 5.3.4: C_W = 1.98800468, C_b = 0.55514317, K* = 14.32017362
    point = doubly_critical("silu")
    assert point.sigma_w**2 == pytest.approx(1.98800468, abs=6e-9)
    assert point.sigma_b**2 == pytest.approx(0.55514317, abs=6e-9)
    assert point.q_star == pytest.approx(14.32017362, abs=2e-7)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_half_stable_ones_are_doubly_critical(name):
    assert (doubly_critical(name) is not None) == (name in HALF_STABLE)


@pytest.mark.parametrize("sigma_b", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("name", [n for n in CRITICAL_NAMES if n not in SCALE_FREE])
def test_a_critical_point_is_fixed_and_has_chi_1_of_one(name, sigma_b):
    point = critical(name, sigma_b=sigma_b)
    assert float(q_map(name, point.q_star, point.sigma_w, sigma_b)) == pytest.approx(point.q_star, rel=TIGHT)
    assert float(chi_1(name, point.q_star, point.sigma_w)) == pytest.approx(1.0, rel=TIGHT)
    assert float(chi_q(name, point.q_star, point.sigma_w)) == pytest.approx(point.chi_q, rel=TIGHT, abs=1e-15)
    assert point.stable == (abs(point.chi_q) < 1)


@pytest.mark.parametrize("name", CRITICAL_NAMES)
def test_the_critical_line_is_the_critical_points(name):
    grid = np.array([0.0, 0.1, 0.7])
    line = critical_line(name, grid)
    for sigma_b, sigma_w in zip(grid, line, strict=True):
        if math.isnan(sigma_w):
            with pytest.raises(UserError, match="critical"):
                critical(name, sigma_b=sigma_b)
        else:
            assert critical(name, sigma_b=sigma_b).sigma_w == pytest.approx(sigma_w, rel=1e-12)


@pytest.mark.parametrize("q_star", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("name", ["tanh", "erf", "selu", "gelu", "sin", "relu6", "softsign"])
def test_a_critical_point_may_be_given_by_its_q(name, q_star):
    point = critical(name, q_star=q_star)
    assert point.q_star == q_star
    again = critical(name, sigma_b=point.sigma_b)
    assert point.sigma_w == pytest.approx(again.sigma_w, rel=1e-6)


@pytest.mark.parametrize(
    ("act", "sigma_w", "kind", "stable"),
    [
        ("relu", 2**0.5, "any", True),
        (("leaky_relu", {"negative_slope": 0.2}), (2 / 1.04) ** 0.5, "any", True),
        ("linear", 1.0, "any", True),
        ("tanh", 1.0, "zero", True),
        ("hardtanh", 1.0, "zero", True),
        ("erf", math.pi**0.5 / 2, "zero", True),
        ("sin", 1 / 30, "zero", True),
        ("selu", 0.690486073634, "zero", True),
        ("gelu", 2.0, "zero", False),
        ("mish", 1 / 0.6, "zero", False),
        ("sigmoid", 10.149263710, "stable", True),
    ],
)
def test_without_biases_every_kind_is_said(act, sigma_w, kind, stable):
    point = critical(act)
    assert point.sigma_w == pytest.approx(sigma_w, rel=1e-10)
    assert (point.kind, point.stable) == (kind, stable)


def test_gelu_is_critical_at_small_biases_only_where_it_repels():
    assert critical("gelu", sigma_b=0.1).kind == "repelling"
    assert critical("gelu", sigma_b=0.41).kind == "repelling"
    assert critical("gelu", sigma_b=0.42).kind == "stable"


@pytest.mark.parametrize(
    ("name", "sigma_w"), [("relu", 2**0.5), ("tanh", 1.0), ("gelu", 1.98305826**0.5), ("silu", 1.98800468**0.5)]
)
def test_the_default_critical_point(name, sigma_w):
    assert default_critical(name).sigma_w == pytest.approx(sigma_w, rel=1e-8)


@pytest.mark.parametrize(
    ("act", "sigma_w", "sigma_b", "kind", "phase"),
    [
        ("tanh", 0.7, 0.0, "zero", "ordered"),
        ("tanh", 1.0, 0.0, "zero", "critical"),
        ("tanh", 1.5, 0.0, "stable", "chaotic"),
        ("tanh", 0.0, 0.3, "stable", "ordered"),
        ("tanh", 0.0, 0.0, "zero", "ordered"),
        ("relu", 2**0.5, 0.0, "any", "critical"),
        ("relu", 2**0.5, 0.1, "infinite", "critical"),
        ("relu", 1.3, 0.0, "zero", "ordered"),
        ("relu", 1.3, 0.3, "stable", "ordered"),
        ("relu", 1.6, 0.0, "infinite", "chaotic"),
        ("linear", 0.5, 1.0, "stable", "ordered"),
        ("gelu", 1.6, 0.1, "infinite", "chaotic"),
        ("gelu", 1.5, 0.0, "zero", "ordered"),
        ("selu", 1.0, 0.0, "stable", "chaotic"),
        ("softplus", 1.0, 0.0, "stable", "ordered"),
        ("sigmoid", 1.0, 0.0, "stable", "ordered"),
        ("sin", 2 / 30, 0.0, "stable", "chaotic"),
        ("hardtanh", 1.0, 0.0, "zero", "critical"),
        (lambda x: x**3, 1.0, 0.0, "infinite", "chaotic"),
        (torch.exp, 0.2, 0.3, "stable", "ordered"),
        (torch.exp, 2.0, 0.0, "infinite", "chaotic"),
    ],
)
def test_the_kind_of_a_fixed_point(act, sigma_w, sigma_b, kind, phase):
    point = fixed_point(act, sigma_w, sigma_b)
    assert (point.kind, point.phase) == (kind, phase)
    assert point.stable == (kind in ("any", "zero", "stable"))
    assert (point.q_star == 0) == (kind == "zero")
    assert (point.q_star == math.inf) == (kind == "infinite")


def test_several_fixed_points_are_all_listed():
    # below criticality GELU has 0, which attracts, and one that repels; where a signal goes depends on its start
    low, high = fixed_point("gelu", 1.5, 0.0), fixed_point("gelu", 1.5, 0.0, start=2.0)
    ((repelling, slope),) = low.others
    assert low.q_star == 0
    assert high.q_star == math.inf
    assert [q for q, _ in high.others] == [0.0, repelling]
    assert slope > 1
    assert float(q_map("gelu", repelling, 1.5)) == pytest.approx(repelling, rel=TIGHT)
    assert fixed_point("gelu", 1.5, 0.0, start=repelling).kind == "repelling"


def test_a_fixed_point_that_only_touches_is_found():
    point = doubly_critical("gelu")
    found = fixed_point("gelu", point.sigma_w, point.sigma_b, start=point.q_star)
    assert found.kind == "half_stable"
    assert not found.stable
    assert found.q_star == pytest.approx(point.q_star, rel=TIGHT)
    assert found.phase == "critical"
    # from q = 1 the signal stops at a stable point below it: V(q)/q − 1 is 2e-7 at q = 3.027 and -2e-6 at 3.205
    below = fixed_point("gelu", point.sigma_w, point.sigma_b)
    assert below.kind == "stable"
    assert below.q_star == pytest.approx(3.035, abs=1e-3)
    assert [q for q, _ in below.others] == [pytest.approx(point.q_star, rel=TIGHT)]


@pytest.mark.parametrize("name", HALF_STABLE)
def test_double_roots_keep_all_their_digits(name):
    point = doubly_critical(name)
    assert float(chi_1(name, point.q_star, point.sigma_w)) == pytest.approx(1, abs=1e-11)
    assert float(chi_q(name, point.q_star, point.sigma_w)) == pytest.approx(1, abs=1e-11)
    assert float(q_map(name, point.q_star, point.sigma_w, point.sigma_b)) == pytest.approx(point.q_star, rel=1e-14)


@pytest.mark.parametrize("start", [0.9, 0.99, 1.0])
@pytest.mark.parametrize("name", HALF_STABLE)
def test_signals_from_below_settle_at_a_double_root(name, start):
    point = doubly_critical(name)
    if name.startswith("gelu") and start < 1:
        start = 1.0  # from the left of it, GELU's signals go back to another fixed point
    found = fixed_point(name, point.sigma_w, point.sigma_b, start=start * point.q_star)
    assert found.q_star == pytest.approx(point.q_star, rel=TIGHT)
    assert found.chi_1 == pytest.approx(1, abs=1e-9)
    assert (found.phase, found.kind, found.xi_c, found.c_star) == ("critical", "half_stable", math.inf, 1.0)


def test_fixed_points_close_together_are_told_apart():
    # behind the point where SiLU's q-map touches the diagonal, 2 % further, it crosses it
    point = doubly_critical("silu")
    found = fixed_point("silu", point.sigma_w, point.sigma_b)
    ((further, slope),) = found.others
    assert further / found.q_star == pytest.approx(1.01906, abs=1e-5)
    assert slope == pytest.approx(1 - 7.58e-7, abs=1e-8)
    assert float(q_map("silu", further, point.sigma_w, point.sigma_b)) == pytest.approx(further, rel=1e-13)
    # a little less gain, and V dips below the diagonal: two crossings, the lower one stable
    less = fixed_point("mish", doubly_critical("mish").sigma_w * (1 - 1e-9), doubly_critical("mish").sigma_b)
    assert len(less.others) == 1
    assert less.q_star < doubly_critical("mish").q_star < less.others[0][0]
    assert less.chi_q < 1 < less.others[0][1]


@pytest.mark.parametrize("sigma_b", [0.0, 0.25])
@pytest.mark.parametrize("sigma_w", [0.8, 1.35, 2.2])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "sin"])
def test_fixed_points_are_fixed(name, sigma_w, sigma_b):
    point = fixed_point(name, sigma_w, sigma_b)
    assert point.chi_1 >= 0
    assert 0 <= point.c_star <= 1
    assert point.phase == ("ordered" if point.chi_1 < 1 else "chaotic")
    assert point.xi_grad == pytest.approx(abs(1 / math.log(point.chi_1)))
    if not 0 < point.q_star < math.inf:
        return
    q = point.q_star
    assert float(q_map(name, q, sigma_w, sigma_b)) == pytest.approx(q, rel=TIGHT)
    assert c_map(name, 1.0, q, sigma_w, sigma_b) == pytest.approx(1.0, abs=1e-12)
    assert c_map_slope(name, 1.0, q, sigma_w, sigma_b) == pytest.approx(point.chi_1, rel=TIGHT)
    assert c_map(name, point.c_star, q, sigma_w, sigma_b) == pytest.approx(point.c_star, abs=1e-11)
    slope = c_map_slope(name, point.c_star, q, sigma_w, sigma_b)
    assert slope <= 1
    assert point.xi_c == pytest.approx(-1 / math.log(slope), rel=1e-8)


@pytest.mark.parametrize("sigma_w", [1.2, 3.0])
def test_sin_settles_where_its_closed_forms_say(sigma_w):
    sigma_b = 0.01
    act = activation(("sin", {"omega": 3.0}))
    q = 1.0
    for _ in range(200):
        q = sigma_w**2 * -math.expm1(-18 * q) / 2 + sigma_b**2
    c, w = 0.5, 9 * q
    for _ in range(20000):
        c = (sigma_w**2 * (math.exp(-w * (1 - c)) - math.exp(-w * (1 + c))) / 2 + sigma_b**2) / q
    point = fixed_point(act, sigma_w, sigma_b)
    assert point.q_star == pytest.approx(q, rel=TIGHT)
    assert point.c_star == pytest.approx(c, abs=1e-10)


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("name", ["tanh", "hardtanh"])
def test_the_chaotic_side_next_to_the_line_loses_no_digits(name, eps):
    # with χ₁ = 1 + ε, 1 − C(c) = (1 + ε)(1 − c) − a (1 − c)^p has C′(c*) = 1 − (p − 1) ε: p = 2, but 3/2 with kinks
    point = critical(name, sigma_b=0.3)
    found = fixed_point(name, point.sigma_w * (1 + eps), 0.3)
    assert found.phase == "chaotic"
    expected = {"tanh": 1.0, "hardtanh": 2.0}[name]
    assert found.xi_c * (found.chi_1 - 1) == pytest.approx(expected, rel=5 * eps**0.5)


@pytest.mark.parametrize("name", ["tanh", "erf", "silu", "hardtanh", "relu", "gelu", "selu", "sigmoid"])
def test_a_phase_diagram_is_its_fixed_points(name):
    sigma_w, sigma_b = np.array([0.6, 1.0, 1.41, 1.9, 3.7]), np.array([0.0, 0.15, 0.9])
    diagram = phase_diagram(name, sigma_w, sigma_b)
    assert diagram.q_star.shape == (3, 5)
    for row, column in np.ndindex(3, 5):
        point = fixed_point(name, sigma_w[column], sigma_b[row])
        assert diagram.q_star[row, column] == pytest.approx(point.q_star, rel=TIGHT)
        assert diagram.chi_1[row, column] == pytest.approx(point.chi_1, rel=TIGHT)
        near = 0.9 < point.c_star < 1  # next to the line the diagram is for looking at
        assert diagram.c_star[row, column] == pytest.approx(point.c_star, abs=3e-4 if near else TIGHT)
        assert diagram.xi_c[row, column] == pytest.approx(point.xi_c, rel=0.05 if near else 1e-8)
        assert diagram.phase[row, column] == point.phase


def test_a_phase_diagram_is_a_tidy_frame():
    frame = phase_diagram("tanh", [1.0, 2.0], [0.0, 0.1, 0.2]).frame()
    assert list(frame) == ["sigma_w", "sigma_b", "q_star", "chi_1", "c_star", "xi_c", "phase"]
    assert len(frame) == 6
    assert frame.query("sigma_w == 2 and sigma_b == 0.2").phase.item() == "chaotic"


@pytest.mark.parametrize("name", NAMES)
def test_derived_gains(name):
    assert derived_gain("forward", name) == gains(name).forward
    assert derived_gain("backward", name) == gains(name).backward
    if name != "softplus":
        assert derived_gain("critical", name) == critical(name).sigma_w


def test_facts_worth_telling():
    # torch's recommended tanh gain is chaotic; its default is deep in the ordered phase
    assert fixed_point("tanh", 5 / 3).chi_1 == pytest.approx(1.2098, abs=6e-5)
    assert fixed_point("tanh", 3**-0.5).phase == "ordered"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: critical("softplus"), "'softplus' has no critical point at sigma_b=0.0: E\\[φ²\\] > q E\\[φ′²\\]"),
        (lambda: critical("softplus", q_star=1.0), "no critical point at q_star=1.0"),
        (lambda: critical("sigmoid", q_star=1.0), "it has one for q_star of 45.62 and above"),
        (lambda: critical("relu", sigma_b=0.1), "scale-free and critical at sigma_b=0 alone"),
        (lambda: critical("tanh", sigma_b=0.1, q_star=1.0), "cannot both be given"),
        (lambda: critical("tanh", sigma_b=-0.1), "sigma_b=-0.1 must be a finite number"),
        (lambda: critical("tanh", q_star=0.0), "q_star=0.0 must be a positive"),
        (lambda: critical(torch.zeros_like), "flat"),
        (lambda: critical(torch.sign), "'sign' jumps at x = 0"),
        (lambda: gains(torch.sign), "jumps"),
        (lambda: gains(torch.floor), "jumps"),
        (lambda: fixed_point(torch.sign, 1.0), "jumps"),
        (lambda: fixed_point("tanh", -1.0), "sigma_w=-1.0 must be a finite number ≥ 0"),
        (lambda: fixed_point("tanh", math.nan), "sigma_w=nan"),
        (lambda: fixed_point("tanh", 1.0, math.inf), "sigma_b=inf"),
        (lambda: fixed_point("tanh", 1.0, start=0.0), "start=0.0 must be a positive"),
        (lambda: fixed_point("tahn", 1.0), "tahn"),
        (lambda: c_map("tanh", 1.5, 1.0, 1.0), "c=1.5 must lie in"),
        (lambda: phase_diagram("tanh", [1.0, -1.0], [0.0]), "sigma_w=-1.0"),
        (lambda: phase_diagram("tanh", [[1.0]], [0.0]), "sigma_w must be a list"),
        (lambda: critical_line("tanh", [0.0, math.nan]), "sigma_b=nan"),
        (lambda: derived_gain("sideways", "tanh"), "init.gain='sideways' is unknown"),
        (lambda: derived_gain("forward", torch.zeros_like), "has no forward gain"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(call, says):
    with pytest.raises(UserError, match=says) as error:
        call()
    text = str(error.value)
    assert text.endswith(".") or "Choose one of" in text
    assert "\n" not in text
