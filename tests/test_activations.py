"""Every activation: its module, its derivative, its kinks and its saturation agree with φ, for the whole registry."""

import cmath
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.special import erf
from torch import nn

from initlab.activations import (
    ACT_ALIASES,
    ACTIVATIONS,
    SATURATION_SLOPE,
    Activation,
    Elementwise,
    activation,
)
from initlab.errors import UserError
from initlab.system.imports import load_target

CONF = Path(__file__).parents[1] / "conf" / "act"
EVERY = pytest.mark.parametrize("record", ACTIVATIONS.values(), ids=lambda record: record.name)

# Constants that formulas show in short.
DIGITS = {"1.0507": "1.0507009873554805", "1.6733": "1.6732632423543772"}
SIGNS = {"·": "*", "−": "-", "√": "sqrt", "π": "pi", "²": "**2", "³": "**3", "|x|": "modulus(x)"}
SIGNS |= {"Φ": "normal_cdf"} | DIGITS


class Step(complex):
    """x + 1e-100 i: the imaginary part of φ of it over 1e-100 is φ′(x) to rounding. It compares by its real part."""

    def __gt__(self, other: float) -> bool:
        return self.real > other


def real_part(z: complex) -> float:
    return z.real


FUNCTIONS = {
    **{name: getattr(cmath, name) for name in ("exp", "tanh", "sin", "sqrt", "pi")},
    "ln": cmath.log,
    "arctan": cmath.atan,
    "erf": lambda z: erf(complex(z)),
    "sigmoid": lambda z: 1 / (1 + cmath.exp(-z)),
    "normal_cdf": lambda z: (1 + erf(complex(z) / math.sqrt(2))) / 2,
    "modulus": lambda z: z if z.real > 0 else -z,
    "min": partial(min, key=real_part),
    "max": partial(max, key=real_part),
}


def formula_values(record: Activation, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ and φ′ from the text of the record's formula, evaluated by another library than torch."""
    text = record.formula.split(", a learned")[0]
    for sign, written in SIGNS.items():
        text = text.replace(sign, written)
    names = FUNCTIONS | dict(record.parameters) | {"a": record.leaky_slope}
    code = compile(text, record.name, "eval")
    values = np.array([eval(code, {}, names | {"x": Step(at, 1e-100)}) for at in x.tolist()])
    return values.real, values.imag * 1e100


def derivatives(record: Activation, x: torch.Tensor, order: int) -> list[torch.Tensor]:
    """φ, φ′, … φ^(order) at x by repeated backward passes."""
    x = x.clone().requires_grad_()
    values = [record(x)]
    for _ in range(order):
        if values[-1].requires_grad:
            values += torch.autograd.grad(values[-1].sum(), x, create_graph=True, materialize_grads=True)
        else:  # a derivative that is constant in x has left the graph
            values.append(torch.zeros_like(x))
    return [value.detach() for value in values]


@EVERY
def test_phi_and_its_slope_match_the_formula(record):
    x = torch.linspace(-30.03, 30.01, 1001, dtype=torch.float64)
    phi, dphi = derivatives(record, x, 1)
    for value, expected in zip((phi, dphi), formula_values(record, x.numpy()), strict=True):
        torch.testing.assert_close(value, torch.from_numpy(expected), rtol=1e-12, atol=1e-13)


@EVERY
def test_module_equals_phi(record):
    x = torch.linspace(-60, 60, 2401, dtype=torch.float64)
    module = record.build().double()
    with torch.no_grad():
        torch.testing.assert_close(module(x), record(x), rtol=1e-15, atol=1e-15)
    assert module is not record.build()
    assert type(module).__module__.startswith("torch.nn") or isinstance(module, Elementwise)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtype_is_kept_and_gradients_are_finite(record, dtype):
    x = torch.tensor([-1e4, -90.0, -6, -3, -1, -1e-30, 0, 1e-30, 1, 3, 6, 90, 1e4], dtype=dtype)
    for value in derivatives(record, x, 1):
        assert value.dtype == dtype
        assert torch.isfinite(value).all()


@EVERY
def test_phi_jumps_at_its_kinks_and_nowhere_else(record):
    step = 1e-3
    x = torch.arange(-10, 10, step, dtype=torch.float64) + 0.37 * step
    jumps = torch.zeros(len(x) - 1, dtype=torch.bool)
    for value in derivatives(record, x, 2):
        jumps |= value.diff().abs() > 0.1 * value.abs().max()
    found = [x[i] for i in torch.nonzero(jumps).flatten()]
    assert len(found) == len(record.kinks)
    assert all(left < kink < left + step for left, kink in zip(found, record.kinks, strict=True))


def slopes_at_saturation(record):
    """|φ′| over its largest value: everywhere outside the interval, and just inside its finite ends."""
    low, high = record.saturation or (-math.inf, math.inf)
    x = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    slope_ = derivatives(record, x, 1)[1].abs()
    outside = (x < low) | (x > high)
    # ELU with alpha below 0.05 is saturated from 0 on: just inside then lies right of the kink.
    just_inside = torch.tensor([end for end in (low + 1e-9, high - 1e-9) if math.isfinite(end)], dtype=torch.float64)
    return slope_[outside] / slope_.max(), derivatives(record, just_inside, 1)[1].abs() / slope_.max()


@EVERY
def test_saturation_is_where_the_slope_is_small(record):
    outside, inside = slopes_at_saturation(record)
    assert (outside < SATURATION_SLOPE).all()
    assert (inside >= SATURATION_SLOPE).all()


@EVERY
@pytest.mark.parametrize("side", [-1, 1], ids=["left", "right"])
def test_saturation_is_a_plateau_other_than_phi_of_zero(record, side):
    far = record(side * torch.linspace(5e5, 1e6, 1001, dtype=torch.float64))
    at_zero = record(torch.zeros(1, dtype=torch.float64))
    plateau = bool(far.max() - far.min() < 1e-4)
    end = (record.saturation or (-math.inf, math.inf))[(side + 1) // 2]
    assert math.isfinite(end) == (plateau and bool((far[-1] - at_zero).abs() > 1e-3))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("elu", {"alpha": 3}),
        ("elu", {"alpha": 0.5}),
        ("elu", {"alpha": 0.01}),
        ("celu", {"alpha": 2}),
        ("softplus", {"beta": 4}),
    ],
)
def test_saturation_follows_the_parameters(name, parameters):
    outside, inside = slopes_at_saturation(ACTIVATIONS[name].bind(**parameters))
    assert (outside < SATURATION_SLOPE).all()
    assert (inside >= SATURATION_SLOPE).all()


PARAMETERS = [(record.name, key) for record in ACTIVATIONS.values() for key in record.parameters]


@pytest.mark.parametrize(("name", "key"), PARAMETERS)
def test_a_bound_parameter_reaches_phi_and_module(name, key):
    record = ACTIVATIONS[name]
    other = record.bind(**{key: record.parameters[key] * 1.5})
    x = torch.linspace(-3, 2, 50, dtype=torch.float64)
    assert not torch.equal(other(x), record(x))
    with torch.no_grad():
        torch.testing.assert_close(other.build().double()(x), other(x), rtol=1e-15, atol=1e-15)
    assert record.parameters[key] == ACTIVATIONS[name].parameters[key]
    assert hash(other) != hash(record)


@EVERY
def test_records_are_complete_and_found_by_name(record):
    assert activation(record.name) is record
    assert record.reference
    assert record.formula
    assert hash(record) == hash(activation((record.name, {})))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "custom"])
def test_option_files_hold_the_defaults_of_the_registry(name):
    option = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    own = {"target": None} if name == "custom" else dict(ACTIVATIONS[name].parameters)
    assert option == {"name": name, **own}


def test_every_option_file_has_a_registry_row():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*ACTIVATIONS, "custom"}


@pytest.mark.parametrize("alias", ACT_ALIASES)
def test_aliases_lead_to_records(alias):
    assert activation(alias) is ACTIVATIONS[ACT_ALIASES[alias]]
    assert alias not in ACTIVATIONS


def tempered(x, temperature=2.0):
    return torch.tanh(x / temperature)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (torch.tanh, math.tanh(1)),
        (nn.Tanh, math.tanh(1)),
        (nn.LeakyReLU(0.5), 1),
        (tempered, math.tanh(0.5)),
        ((tempered, {"temperature": 4}), math.tanh(0.25)),
        (("custom", {"target": "torch:sin"}), math.sin(1)),
    ],
)
def test_callables_and_targets_are_activations(spec, expected):
    record = activation(spec)
    x = torch.ones(1, dtype=torch.float64)
    assert record(x).item() == pytest.approx(expected, rel=1e-15)
    assert record.build()(x).item() == pytest.approx(expected, rel=1e-15)
    assert record.saturation is None
    assert activation(record) is record


@pytest.mark.parametrize(
    ("spec", "a"), [("leaky_relu", 0.01), ("prelu", 0.25), (("leaky_relu", {"negative_slope": 0.2}), 0.2)]
)
def test_slope_of_leaky_activations(spec, a):
    assert activation(spec).leaky_slope == a


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"leaky_relu", "prelu"}))
def test_slope_of_the_others_is_zero(name):
    assert ACTIVATIONS[name].leaky_slope == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("rleu", ["act=rleu", "'relu'"]),
        (("leaky_relu", {"negative_slop": 1}), ["act.negative_slop", "Did you mean 'negative_slope'"]),
        (("tanh", {"alpha": 1}), ["act=tanh", "no parameters"]),
        (("elu", {"alpha": "x"}), ["act.alpha=x", "number", "1.0"]),
        (("elu", {"alpha": -1}), ["act.alpha=-1", "positive"]),
        (("sin", {"omega": math.inf}), ["act.omega=inf", "finite"]),
        (("custom", {"target": None}), ["act.target", "package.module:function"]),
        (3, ["act=3"]),
    ],
)
def test_errors_name_key_value_and_remedy(spec, words):
    with pytest.raises(UserError) as caught:
        activation(spec)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_lies_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "initlab_test_mine.py").write_text("def cube(x):\n    return x**3\n")
    monkeypatch.chdir(tmp_path)
    record = activation(("custom", {"target": "initlab_test_mine:cube"}))
    assert record(torch.tensor(2.0)).item() == 8
    assert record.name == "cube"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("math", ["act.target=math", "package.module:function"]),
        ("math:", ["act.target=math:"]),
        ("initlab_no_such_module:f", ["cannot import module 'initlab_no_such_module'", "current directory"]),
        ("math:hypo", ["has no 'hypo'", "'hypot'"]),
    ],
)
def test_targets_that_name_nothing(target, words):
    with pytest.raises(UserError) as caught:
        load_target(target, "act.target")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_raises_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "initlab_raises_at_once.py").write_text("\nraise KeyError('lost')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_target("initlab_raises_at_once:f", "act.target")
    assert str(caught.value) == (
        "act.target=initlab_raises_at_once:f: 'initlab_raises_at_once' failed when it was imported "
        "(KeyError: 'lost' in initlab_raises_at_once.py, line 2): correct it there."
    )
