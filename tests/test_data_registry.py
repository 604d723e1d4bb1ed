"""Data sets: one split, one normalisation and one order of batches for all; bad values are named."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from initlab.data import DATASETS, batches, load_dataset, steps_per_epoch
from initlab.data.dataset import RawDataset, make_dataset
from initlab.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "data"
DRAWN = ("gaussian", "digits_1d", "sine")


def numbered(counts: list[int], classes: bool = True) -> RawDataset:
    """Samples that carry their own row number, so that a split can be followed."""
    n = sum(counts)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return RawDataset(
        x, y if classes else x.clone(), x, y if classes else x.clone(), len(counts) if classes else None, ""
    )


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("classes", [True, False])
def test_the_split_is_a_partition_in_the_proportions_of_the_classes(fraction, classes):
    counts = [100, 40, 20, 400]
    data = make_dataset("numbered", numbered(counts, classes), normalize=True, validation=fraction)
    rows = torch.cat([data.train_x, data.val_x]).flatten()
    assert rows.sort().values.tolist() == list(range(560))
    assert data.train_x.flatten().tolist() == sorted(data.train_x.flatten().tolist())
    if classes:
        assert torch.bincount(data.val_y, minlength=4).tolist() == [round(fraction * count) for count in counts]
    else:
        assert len(data.val_x) == round(fraction * 560)


def test_small_classes_give_one_and_keep_one():
    data = make_dataset("numbered", numbered([1, 2, 3]), normalize=True, validation=0.1)
    assert torch.bincount(data.val_y, minlength=3).tolist() == [0, 1, 1]


def test_the_split_and_the_tensors_do_not_depend_on_the_seed_nor_on_torchs_random_state():
    first = load_dataset("digits_1d", train_size=300, test_size=30)
    torch.manual_seed(99)
    other = load_dataset("digits_1d", train_size=300, test_size=30, seed=7)
    assert other.val_x is first.val_x
    assert (first.seed, other.seed) == (0, 7)


def test_images_are_standardised_by_the_training_part():
    data = load_dataset("fashion_mini")
    x = data.prepare(data.train_x, torch.float64)
    assert x.mean().item() == pytest.approx(0, abs=1e-12)
    assert x.square().mean().item() == pytest.approx(1, rel=1e-12)
    expected = (data.test_x.double() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(data.prepare(data.test_x, torch.float64), expected, rtol=1e-13, atol=1e-13)


def test_without_normalisation_images_lie_in_0_to_1():
    data = load_dataset("fashion_mini", normalize=False)
    torch.testing.assert_close(data.prepare(data.test_x), data.test_x / 255, rtol=1e-6, atol=0)
    assert data.mean == data.std == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["fashion_mini", *DRAWN])
def test_prepare_gives_a_new_tensor_of_the_dtype(name, dtype):
    data = load_dataset(name)
    rows = data.test_x[:50]
    before = rows.clone()
    x = data.prepare(rows, dtype)
    assert x.dtype == dtype
    assert x.shape == rows.shape
    x.zero_()
    assert torch.equal(rows, before)
    precise = data.prepare(rows, torch.float64)
    torch.testing.assert_close(data.prepare(rows, dtype).double(), precise, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    if dtype == torch.bfloat16:
        assert torch.equal(data.prepare(rows, dtype), data.prepare(rows, torch.float32).to(dtype))


def test_a_constant_channel_is_left_finite():
    x = torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    data = make_dataset("flat", RawDataset(x, torch.tensor([0, 1]), x, torch.tensor([0, 1]), 2, ""), True, 0)
    assert data.prepare(x).tolist() == [[0, -1], [0, 1]]


def test_a_second_load_shares_the_tensors():
    data = load_dataset("fashion_mini")
    assert load_dataset("fashion_mini").train_x is data.train_x
    assert load_dataset("fashion_mini", validation=0.2).train_x is not data.train_x


@pytest.mark.parametrize(("n", "size"), [(100, 10), (103, 10), (7, 7), (5, 1)])
def test_an_epoch_visits_every_row_at_most_once_in_full_batches(n, size):
    per_epoch = steps_per_epoch(n, size)
    assert per_epoch == n // size
    order = list(batches(n, size, steps=3 * per_epoch))
    assert len(order) == 3 * per_epoch
    epochs = [torch.cat(order[k * per_epoch : (k + 1) * per_epoch]) for k in range(3)]
    for epoch in epochs:
        assert len(epoch) == per_epoch * size
        assert len(set(epoch.tolist())) == per_epoch * size
        assert set(epoch.tolist()) <= set(range(n))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("start", range(9))
def test_batches_can_start_at_any_step(start):
    whole = torch.stack(list(batches(11, 3, steps=9, seed=5)))
    rest = list(batches(11, 3, steps=9, seed=5, start=start))
    assert torch.equal(torch.stack(rest), whole[start:])


def test_batches_depend_on_the_seed_alone():
    first = torch.stack(list(batches(1000, 100, steps=20, seed=3)))
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    assert torch.equal(torch.stack(list(batches(1000, 100, steps=20, seed=3))), first)
    assert not torch.equal(torch.stack(list(batches(1000, 100, steps=20, seed=4))), first)
    assert not torch.equal(torch.stack(list(batches(1000, 100, steps=20, seed=3 + 2**40))), first)


def test_batches_go_on_without_a_number_of_steps():
    order = batches(10, 5)
    assert len({tuple(next(order).tolist()) for _ in range(100)}) > 90


def test_no_pair_of_epochs_shares_its_order():
    # 64 bits and more of the key reach the generator: epochs of neighbouring seeds do not coincide.
    first = {tuple(next(batches(20, 20, seed=s, start=e)).tolist()) for s in range(50) for e in range(50)}
    assert len(first) == 2500


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_that_cannot_be_filled_is_refused_at_once(size):
    with pytest.raises(UserError, match=f"train.batch_size={size} must lie between 1 and the 10"):
        batches(10, size)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("fashion_mni", {}, ["data=fashion_mni", "'fashion_mini'"]),
        ("gaussian", {"dimensions": 3}, ["data.dimensions", "'dimension'"]),
        ("fashion_mini", {"size": 3}, ["data.size", "no parameters"]),
        ("gaussian", {"classes": 1}, ["data.classes=1", "at least 2"]),
        ("gaussian", {"train_size": 0}, ["data.train_size=0", "at least 1"]),
        ("gaussian", {"train_size": 1.5}, ["data.train_size=1.5", "integer"]),
        ("sine", {"frequency": "abc"}, ["data.frequency=abc", "number"]),
        ("sine", {"noise": -1.0}, ["data.noise=-1.0", "at least 0"]),
        ("sine", {"noise": math.nan}, ["data.noise=nan", "finite"]),
        ("fashion_mini", {"validation": 1}, ["data.validation=1", "[0, 1)"]),
        ("fashion_mini", {"validation": "x"}, ["data.validation=x", "0.1"]),
        ("fashion_mini", {"seed": -1}, ["data.seed=-1", "non-negative"]),
        ("fashion_mini", {"normalize": "no"}, ["data.normalize=no", "true or false"]),
        ("custom", {}, ["data.target=null", "package.module:function"]),
    ],
)
def test_errors_name_key_value_and_remedy(name, arguments, words):
    with pytest.raises(UserError) as caught:
        load_dataset(name, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", [*DATASETS, "custom"])
def test_option_files_hold_the_defaults_of_the_registry(name):
    option = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    own = {"target": None} if name == "custom" else dict(DATASETS[name].parameters)
    assert option == {"name": name, "root": None, "normalize": True, "validation": 0.1, "seed": 0, **own}


def test_every_option_file_has_a_registry_row():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*DATASETS, "custom"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_data_set_lives_on_its_device():
    data = load_dataset("fashion_mini", device="cuda")
    assert data.train_x.is_cuda
    x = data.prepare(data.train_x[next(batches(9000, 128, device="cuda"))])
    assert x.is_cuda
    torch.testing.assert_close(
        x.cpu(), load_dataset("fashion_mini").prepare(data.train_x.cpu()[next(batches(9000, 128))])
    )
