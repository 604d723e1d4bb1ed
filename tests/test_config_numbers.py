"""Numbers that would mean something else, and custom data that would: refused with key, value and remedy."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import initlab
from initlab.config.compose import compose_config
from initlab.config.option_files import option_names, option_values
from initlab.config.schema import GROUPS
from initlab.data import arrays, load_dataset
from initlab.data.custom import read_custom
from initlab.errors import UserError
from initlab.experiment import config_refusal
from initlab.schemes import SCHEMES
from initlab.system.numbers import fits_float32

FLOATS = [
    (group, option, key)
    for group in GROUPS
    for option in option_names(group)
    for key, value in (option_values(group, option) or {}).items()
    if isinstance(value, float) and option != "custom"
]


@pytest.mark.parametrize("value", ["1e-320", "-1e-44", "nan"])
def test_no_key_of_any_option_takes_a_number_that_float32_does_not_hold(value):
    found = {(group, key): option for group, option, key in FLOATS}
    assert len(found) > 30
    for (group, key), option in found.items():
        with pytest.raises(UserError) as refused:
            config_refusal(compose_config([f"{group}={option}", f"{group}.{key}={value}"]))
        assert f"{group}.{key}=" in str(refused.value), (group, option, key)


@pytest.mark.parametrize("key", ["train.epochs", "sweep.checkpoint_every", "sweep.memory", "train.target_loss"])
def test_nor_does_any_other_key(key):
    with pytest.raises(UserError, match=f"{key}=1e-320 cannot be: float32 would make it 0"):
        compose_config([f"{key}=1e-320"])


@pytest.mark.parametrize("gain", [1e-320, 1e-31, 1e31, float("inf")])
def test_gains_from_python(gain):
    layer = nn.Linear(4, 4)
    before = layer.weight.clone()
    with pytest.raises(UserError, match=r"init\.gain="):
        initlab.initialize_(layer, "he_normal", gain=gain)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", [s.name for s in SCHEMES.values() if "std" in s.parameters or "value" in s.parameters])
def test_constants_and_deviations_from_python(name):
    key = "std" if "std" in SCHEMES[name].parameters else "value"
    with pytest.raises(UserError, match=f"init.{key}=1e-320 cannot be for init={name}: float32 would make it 0"):
        initlab.initialize_(nn.Linear(4, 4), name, parameters={key: 1e-320})


def test_what_two_keys_make_together_and_what_a_narrow_type_holds():
    layer = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"weight would have a standard deviation of .* float32 does not hold"):
        initlab.initialize_(layer, "variance_scaling", gain=1e-28, parameters={"scale": 1e-28})
    narrow = nn.Linear(4, 4).to(torch.float16)
    before = narrow.weight.clone()
    with pytest.raises(UserError, match=r"a standard deviation of 1e-09, which float16 does not hold"):
        initlab.initialize_(narrow, "normal", parameters={"std": 1e-9})
    assert torch.equal(narrow.weight, before)
    initlab.initialize_(narrow, "normal", parameters={"std": 0.01})


def test_ordinary_numbers_pass():
    assert all(map(fits_float32, (0, 1, -1e-30, 1e30, 1e-8)))
    for override in ("optim.lr=0", "optim.lr=1e-8", "init.sigma_b=0", "optim.momentum=0.99999", "train.epochs=0.01"):
        compose_config([override])


# --- counts


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["log.histograms=1000000000"], "log.histograms=1000000000 is more than 100,000"),
        (["train.steps=100000000000"], "train.steps=100000000000 is more than 1,000,000,000"),
        (["train.epochs=1e20"], r"train.epochs=1e\+20 are .* updates: say 1,000,000,000 or fewer"),
        (["tune.seeds=1000000000"], "tune.seeds=1000000000 is more than 1,000"),
        (["threads=100000000"], "threads=100000000 is more than 4,096"),
        (["depth=10000000000"], "depth=10000000000 is more than 100,000"),
        (["width=10000000000000000000000"], "width=10000000000000000000000 is more than"),
        (["depth=1", "width=[10000000000]"], "holds 10000000000: every width"),
        (["log.every=1000000000000000000000"], "log.every has 22 digits"),
        (["init=lsuv", "init.steps=10000000000"], "init.steps=10000000000 must be a whole number from 0 to 1,000,000"),
        (["data=gaussian", "data.train_size=1000000000000"], "data.train_size=1000000000000 must be"),
        (["data=gaussian", "data.train_size=100000000"], "would hold 100,002,000 samples of 32 numbers"),
        (["data=gaussian", "data.classes=100000"], "data.classes=100000 are more than data.train_size=10000"),
        (["optim.momentum=0.9999999999"], "optim.momentum=0.9999999999 must be"),
    ],
)
def test_absurd_counts_are_refused_at_once(overrides, says):
    with pytest.raises(UserError, match=says):
        config_refusal(compose_config(overrides))


BATCH = ["model.norm=batch", "train.batch_size=1", "depth=1", "width=4"]


def test_batch_norm_of_one_sample_is_refused_before_training():
    assert "say train.batch_size=2 or more" in config_refusal(compose_config(["model=mlp", *BATCH]))
    assert "say train.batch_size=2 or more" in config_refusal(compose_config(["model=resmlp", *BATCH]))
    assert config_refusal(compose_config(["model=cnn", *BATCH])) is None  # a map has many values of each channel
    assert config_refusal(compose_config(["model=mlp", *BATCH, "train.batch_size=2"])) is None
    assert config_refusal(compose_config(["model=mlp", *BATCH, "model.norm=layer"])) is None


# --- custom data


def data(train_x=None, train_y=None, test_x=None, test_y=None):
    """Two parts, one of them with something else in it."""
    x, y = np.zeros((6, 4), "float32"), np.arange(6) % 3
    return (
        (x if train_x is None else train_x, y if train_y is None else train_y),
        (x if test_x is None else test_x, y if test_y is None else test_y),
    )


def read(parts):
    function = lambda: parts  # noqa: E731
    globals()["function"] = function
    return read_custom((), target=f"{__name__}:function")


RAGGED = [[1.0, 2.0], [3.0]] * 3
OBJECTS = np.array([np.zeros(2), np.zeros(3), None, None, None, None], dtype=object)


@pytest.mark.parametrize("part", ["train_x", "test_x"])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((6, 4), "complex64"), "inputs that are complex: give real numbers"),
        (torch.zeros(6, 4, dtype=torch.complex128), "inputs that are complex"),
        (OBJECTS, "inputs that are an array of object"),
        (np.array([["a"] * 4] * 6), "inputs that are text"),
        (np.array([[b"a"] * 4] * 6), "inputs that are text"),
        (np.zeros((6, 4), "datetime64[s]"), "inputs that are an array of datetime64"),
        (RAGGED, "inputs that make no array .*give every sample the same shape"),
        (np.full((6, 4), np.nan), "inputs with 24 of 24 values not finite .the first at .0, 0. is nan"),
        (np.full((6, 4), np.inf, "float32"), "not finite"),
        (np.full((6, 4), 1e300), "inputs as large as 1e.300, which float32 cannot hold: rescale"),
        (np.full((6, 4), 1e-320), "which float32 holds as 0: rescale"),
        (np.full((6, 4), 2**60 + 1), "whole numbers up to 1152921504606846977, which float32 rounds"),
        (np.full((6, 4), 2**64 - 1, "uint64"), "beyond 2.63"),
        (np.zeros(6), r"inputs of shape \[6\]: give one row per sample"),
        (np.zeros((0, 4)), "which hold nothing"),
        (np.zeros((6, 0)), "which hold nothing"),
        (np.zeros((5, 4), "float32"), "5 .* inputs with 6 targets: one target each"),
        (np.ma.masked_array(np.zeros((6, 4)), mask=True), "MaskedArray: give an ordinary array"),
        (scipy.sparse.csr_array(np.zeros((6, 4))), r"csr_array: give an ordinary array \(.toarray\(\)\)"),
        (torch.zeros(6, 4).to_sparse(), "a sparse tensor: give x.to_dense"),
        (torch.zeros(6, 4, device="meta"), "on the meta device"),
        ("text", "inputs that are text"),
        (None.__class__, "inputs that are an array of object"),
        (np.zeros((6, 4), "uint8"), "of different kinds"),
        (np.zeros((6, 5), "float32"), "different shapes"),
    ],
)
def test_inputs_that_would_mean_something_else(part, values, says):
    with pytest.raises(UserError, match=says) as refused:
        read(data(**{part: values}))
    assert str(refused.value).startswith(f"data.target={__name__}:function returned ")


@pytest.mark.parametrize("part", ["train_y", "test_y"])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([0, 1, -1, 0, 1, 2]), "class label -1: labels are whole numbers from 0 on; np.unique"),
        (np.array([0, 10**6, 2 * 10**6] * 2), r"class labels \(.*\) up to 2000000, which would make 2000001 outputs"),
        (np.array(["a", "b", "c"] * 2), "targets that are text .'a'.: give numbers; np.unique"),
        (np.array([0, 1, None] * 2, dtype=object), "targets that are an array of object"),
        (np.array([0, 1, 2] * 2, "complex64"), "complex"),
        (np.eye(6, dtype=int), "one-hot rows"),
        (np.array([2**64 - 1] * 6, "uint64"), "beyond 2.63"),
        (np.array([0.5, np.nan] * 3), "targets with 3 of 6 values not finite"),
        (np.array([0.0, 0.5] * 3), "of different kinds"),
        (np.zeros((6, 2, 2)), "give a regression one row of numbers each"),
        (np.zeros(6, "float32")[:4], "6 .* inputs with 4 targets|different kinds"),
        ([0, 1], "6 .* inputs with 2 targets"),
    ],
)
def test_targets_that_would_mean_something_else(part, values, says):
    with pytest.raises(UserError, match=says):
        read(data(**{part: values}))


def test_one_class_is_nothing_to_learn():
    with pytest.raises(UserError, match="class label 0 for every training sample"):
        read(data(train_y=np.zeros(6, int)))


@pytest.mark.parametrize(
    ("x", "y", "classes"),
    [
        (np.eye(6, 4) > 0, np.arange(6) % 2 > 0, 2),
        (np.eye(6, 4, dtype=">f8"), np.arange(6, dtype=">i4") % 3, 3),
        (np.eye(6, 4).astype("longdouble"), (np.arange(6) % 3).astype("uint64"), 3),
        ([[1, 2]] * 6, [0, 1, 2] * 2, 3),
        ([torch.ones(2)] * 6, [torch.tensor(k % 2) for k in range(6)], 2),
        (torch.eye(6, 4, dtype=torch.bfloat16), torch.arange(6, dtype=torch.uint8) % 2, 2),
        (np.asfortranarray(np.eye(6, 4))[::-1], np.linspace(0, 1, 6), None),
    ],
)
def test_what_means_one_thing_is_taken(x, y, classes):
    raw = read(((x, y), (x, y)))
    assert raw.classes == classes
    assert raw.train_x.dtype == torch.float32
    rows = np.array([[float(value) for value in row] for row in x], "float32")
    assert np.array_equal(raw.train_x.numpy(), rows)
    wanted = np.array([float(v) for v in y])
    assert np.allclose(raw.train_y.numpy().reshape(6), wanted)


def test_what_may_not_be_meant_is_said(capsys):
    read(data(train_y=np.array([1, 2, 3] * 2), test_y=np.array([1, 2, 3] * 2)))
    assert "has no sample of class 0: outputs are 0 to 3" in capsys.readouterr().err
    whole = np.array([0.0, 1.0] * 3)
    read(data(train_y=whole, test_y=whole))
    assert "whole numbers as floats: a regression; classes are integers" in capsys.readouterr().err
    read(data())
    assert capsys.readouterr().err == ""


def test_the_largest_label_bounds_nothing_by_itself():
    assert arrays.count_classes([torch.arange(1000), torch.arange(5)]) == 1000
    assert load_dataset("gaussian", classes=1000, train_size=2000).classes == 1000
