"""Drawn data sets and the user's own: the values promised, and what the user's function gets wrong is named."""

import math

import pytest
import torch

from initlab.data import DATASETS, Dataset, load_dataset
from initlab.errors import UserError

DRAWN = ("gaussian", "digits_1d", "sine")


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_sets_have_the_sizes_asked_for(name):
    data = load_dataset(name, train_size=200, test_size=50, validation=0.1)
    assert len(data.train_x) + len(data.val_x) == 200
    assert len(data.test_x) == len(data.test_y) == 50
    assert torch.isfinite(data.train_x).all()
    assert data.train_x.dtype == torch.float32


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_sets_are_the_same_every_time(name):
    source = DATASETS[name]
    torch.manual_seed(1)
    first = source.read((), **source.parameters)
    torch.manual_seed(2)
    again = source.read((), **source.parameters)
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_y, again.test_y)


def test_gaussian_inputs_are_standard_and_labels_follow_a_teacher():
    data = load_dataset("gaussian", validation=0)
    n = data.train_x.numel()
    # Five standard errors: a false alarm in 1.7 million draws.
    assert abs(data.train_x.mean().item()) < 5 / math.sqrt(n)
    assert abs(data.train_x.var().item() - 1) < 5 * math.sqrt(2 / n)
    assert data.mean == ()
    assert set(data.train_y.tolist()) == set(range(10))
    assert linear_accuracy(data) > 0.5


def test_digits_1d_are_balanced_and_told_apart_by_shape():
    data = load_dataset("digits_1d", validation=0)
    assert data.input_shape == (1, 1, 40)
    assert torch.bincount(torch.cat([data.train_y, data.test_y])).tolist() == [1200] * 10
    # A line separates some of it, far from all: that is what the moved and stretched curves are for.
    assert 0.3 < linear_accuracy(data) < 0.7


def linear_accuracy(data: Dataset) -> float:
    """Test accuracy of a least-squares classifier."""

    def features(x):
        x = data.prepare(x, torch.float64).flatten(1)
        return torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)

    one_hot = torch.nn.functional.one_hot(data.train_y, data.classes).double()
    weights = torch.linalg.lstsq(features(data.train_x), one_hot).solution
    return ((features(data.test_x) @ weights).argmax(1) == data.test_y).double().mean().item()


@pytest.mark.parametrize("frequency", [1.0, 4.0])
def test_sine_is_the_sine(frequency):
    data = load_dataset("sine", frequency=frequency, train_size=4000)
    assert (data.task, data.classes, data.outputs, data.input_shape) == ("regression", None, 1, (1,))
    expected = math.sqrt(2) * torch.sin(math.pi * frequency * data.train_x)
    torch.testing.assert_close(data.train_y, expected, rtol=0, atol=1e-5)
    assert data.train_y.var().item() == pytest.approx(1, abs=5 / math.sqrt(4000))
    assert torch.equal(data.prepare(data.train_x), data.train_x)
    assert data.targets(data.train_y, torch.float64).dtype == torch.float64


def test_sine_varies_along_one_direction_and_is_noisy_in_training_alone():
    clean = load_dataset("sine", dimension=3, validation=0)
    noisy = load_dataset("sine", dimension=3, noise=0.5, validation=0)
    assert torch.equal(clean.test_y, noisy.test_y)
    assert (noisy.train_y - clean.train_y).std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * 2000))
    almost_linear = load_dataset("sine", dimension=3, frequency=1e-3, validation=0)
    direction = torch.linalg.lstsq(almost_linear.train_x, almost_linear.train_y).solution
    assert direction.norm().item() == pytest.approx(math.sqrt(2) * math.pi * 1e-3, rel=1e-4)


MINE = """
import numpy as np, torch
rng = np.random.default_rng(0)
def grey(size=30):
    part = lambda n: (rng.integers(0, 256, (n, 8, 8), np.uint8), np.arange(n) % 3)
    return part(size), part(9)
def floats():
    return (torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 2), (np.ones((3, 4)), [0, 1, 1])
def regression():
    return (np.ones((20, 2)), np.linspace(0, 1, 20)), (np.ones((3, 2)), np.ones(3))
def two(): return 1, 2
def unequal(): return (np.ones((20, 2)), np.zeros(19, int)), (np.ones((3, 2)), np.zeros(3, int))
def shapes(): return (np.ones((20, 2)), np.zeros(20, int)), (np.ones((3, 1)), np.zeros(3, int))
def nan(): return (np.full((20, 2), np.nan), np.zeros(20, int)), (np.ones((3, 2)), np.zeros(3, int))
def negative(): return (np.ones((20, 2)), np.full(20, -1)), (np.ones((3, 2)), np.zeros(3, int))
def bug(): raise ZeroDivisionError("theirs")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "initlab_test_mydata.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return "initlab_test_mydata:"


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "classes", "outputs"),
    [
        ("grey", (1, 8, 8), torch.uint8, 3, 3),
        ("floats", (4,), torch.float32, 2, 2),
        ("regression", (2,), torch.float32, None, 1),
    ],
)
def test_a_function_of_the_users_is_a_data_set(mine, name, shape, dtype, classes, outputs):
    data = load_dataset("custom", target=mine + name)
    assert (data.input_shape, data.train_x.dtype, data.classes, data.outputs) == (shape, dtype, classes, outputs)
    assert len(data.val_x) > 0
    assert torch.isfinite(data.prepare(data.train_x)).all()


def test_parameters_reach_the_users_function(mine):
    assert len(load_dataset("custom", target=mine + "grey", size=60, validation=0).train_x) == 60


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("two", {}, "must return ((train_x, train_y), (test_x, test_y))"),
        ("unequal", {}, "20 training inputs with 19 targets"),
        ("shapes", {}, "different shapes"),
        ("nan", {}, "not finite"),
        ("negative", {}, "class label -1: labels are whole numbers from 0 on"),
        ("grey", {"sise": 3}, "cannot be called with sise"),
        ("gray", {}, "'grey'"),
    ],
)
def test_what_the_users_function_gets_wrong_is_named(mine, name, parameters, words):
    with pytest.raises(UserError) as caught:
        load_dataset("custom", target=mine + name, **parameters)
    assert words in str(caught.value)
    assert f"data.target={mine}{name}" in str(caught.value)


def test_a_bug_in_the_users_function_is_one_sentence_and_keeps_its_traceback(mine):
    with pytest.raises(UserError) as caught:
        load_dataset("custom", target=mine + "bug")
    assert str(caught.value) == (
        f"data.target={mine}bug failed when it was called (ZeroDivisionError: theirs in initlab_test_mydata.py, "
        "line 16): mend the function, or give what it needs as +data.<parameter>."
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
