"""Data sets: what is read is what lies there, the split and the batches are the same for all, damage is named."""

import gzip
import hashlib
import importlib
import math
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml

from initlab.data import DATASETS, Dataset, batches, images, load, steps_per_epoch
from initlab.data.dataset import Raw, make_dataset
from initlab.data.files import SYSTEM_FASHION
from initlab.data.idx import read_idx
from initlab.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "data"
DRAWN = ("gaussian", "digits_1d", "sine")

needs_full = pytest.mark.skipif(not SYSTEM_FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()


def write_mnist_like(place: Path, zipped: bool, seed: int = 0) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Four small idx files; returns what is in them and their md5 sums."""
    rng = np.random.default_rng(seed)
    arrays = []
    for count in (60, 20):
        arrays += [rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)]
    place.mkdir(parents=True, exist_ok=True)
    for name, values in zip(images.FILES, arrays, strict=True):
        if zipped:
            (place / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (place / name).write_bytes(idx_bytes(values))
    return arrays, tuple(hashlib.md5(idx_bytes(values)).hexdigest() for values in arrays)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No test sees the user's own directories, nor a network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("INITLAB_DATA", raising=False)


# --- the shipped set -------------------------------------------------------------------------------------------------


def test_fashion_mini_is_whole_and_stratified():
    data = load("fashion_mini", validation=0.1)
    for x, y, count in (
        (data.train_x, data.train_y, 900),
        (data.val_x, data.val_y, 100),
        (data.test_x, data.test_y, 200),
    ):
        assert x.shape == (10 * count, 1, 28, 28)
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        assert torch.bincount(y).tolist() == [count] * 10
    assert (data.task, data.classes, data.outputs, data.input_shape) == ("classification", 10, 10, (1, 28, 28))


def test_fashion_mini_is_small_and_carries_its_licence():
    files = list(images.SHIPPED.iterdir())
    assert sum(file.stat().st_size for file in files) < 6e6
    assert "Copyright © 2017 Zalando SE" in (images.SHIPPED / "LICENSE").read_text(encoding="utf-8")


@needs_full
def test_fashion_mini_is_the_first_of_each_class_of_the_full_set():
    mini, full = load("fashion_mini", validation=0), load("fashion_mnist", validation=0)
    for part, count in (("train", 1000), ("test", 200)):
        x, y = getattr(full, f"{part}_x"), getattr(full, f"{part}_y")
        rows = torch.cat([torch.nonzero(y == label).flatten()[:count] for label in range(10)]).sort().values
        assert torch.equal(getattr(mini, f"{part}_x"), x[rows])
        assert torch.equal(getattr(mini, f"{part}_y"), y[rows])


@needs_full
def test_fashion_mnist_is_bit_equal_to_torchvision(tmp_path):
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in images.FILES:
        (raw / name).write_bytes(gzip.decompress((SYSTEM_FASHION / f"{name}.gz").read_bytes()))
    data = load("fashion_mnist", validation=0)
    for part, train in (("train", True), ("test", False)):
        theirs = FashionMNIST(str(tmp_path), train=train)
        assert torch.equal(getattr(data, f"{part}_x")[:, 0], theirs.data)
        assert torch.equal(getattr(data, f"{part}_y"), theirs.targets)
    assert data.mean[0] == pytest.approx(0.2860, abs=5e-5)
    assert data.std[0] == pytest.approx(0.3530, abs=5e-5)


# --- idx files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (2, 1, 3, 5)])
def test_idx_gives_back_what_was_written(tmp_path, shape, zipped):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = idx_bytes(values)
    (tmp_path / "file").write_bytes(gzip.compress(content) if zipped else content)
    read = read_idx(tmp_path / "file", hashlib.md5(content).hexdigest())
    assert np.array_equal(read.numpy(), values)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
DAMAGED = {
    "truncated": (GOOD[:-5], "holds 19 values, its header declares 24"),
    "too long": (GOOD + b"\0", "holds 25 values"),
    "header cut": (GOOD[:9], "holds 0 values"),
    "empty": (b"", "starts with nothing"),
    "no idx file": (b"<html>not found</html>", "an idx file of bytes with 000008"),
    "other type": (GOOD[:2] + b"\x0d" + GOOD[3:], "starts with 00000d03"),
    "one bit": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "md5"),
    "gzip truncated": (gzip.compress(GOOD)[:-10], "gzip"),
    "gzip flipped": (gzip.compress(GOOD)[:-6] + b"\1\1" + gzip.compress(GOOD)[-4:], "gzip"),
    "gzip garbage": (b"\x1f\x8b" + b"garbage" * 9, "gzip"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_idx_file_is_named_with_the_remedy(tmp_path, damage):
    content, what = DAMAGED[damage]
    (tmp_path / "some-file").write_bytes(content)
    with pytest.raises(UserError, match=r"some-file.*delete it") as caught:
        read_idx(tmp_path / "some-file", hashlib.md5(GOOD).hexdigest(), "delete it")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_idx_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be read"):
        read_idx(tmp_path / "nowhere")


# --- where files lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("place", ["root", "environment", "cache"])
def test_files_are_found(tmp_path, monkeypatch, place, layout, zipped):
    directory = {"root": tmp_path / "root", "environment": tmp_path / "env", "cache": tmp_path / "cache" / "initlab"}
    arrays, sums = write_mnist_like(directory[place] / layout, zipped)
    monkeypatch.setitem(images.SUMS, "mnist", sums)
    if place == "environment":
        monkeypatch.setenv("INITLAB_DATA", str(directory[place]))
    data = load("mnist", root=directory[place] if place == "root" else None, validation=0)
    assert np.array_equal(data.train_x[:, 0].numpy(), arrays[0])
    assert np.array_equal(data.train_y.numpy(), arrays[1])
    assert np.array_equal(data.test_x[:, 0].numpy(), arrays[2])
    assert np.array_equal(data.test_y.numpy(), arrays[3])


def test_data_root_comes_before_the_environment(tmp_path, monkeypatch):
    write_mnist_like(tmp_path / "env", False, seed=1)
    arrays, sums = write_mnist_like(tmp_path / "root", False, seed=2)
    monkeypatch.setitem(images.SUMS, "mnist", sums)
    monkeypatch.setenv("INITLAB_DATA", str(tmp_path / "env"))
    assert np.array_equal(load("mnist", root=str(tmp_path / "root"), validation=0).train_x[:, 0].numpy(), arrays[0])


def test_files_of_another_data_set_are_refused(tmp_path):
    write_mnist_like(tmp_path, True)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is damaged \(the md5 of its content is .*fetched"):
        load("mnist", root=tmp_path)


class Download:
    """Stands in for torchvision's MNIST: writes files below the directory that it is given, or fails."""

    def __init__(self, root: str, download: bool):
        write_mnist_like(Path(root) / "MNIST" / "raw", True)


class NoNetwork:
    def __init__(self, root: str, download: bool):
        (Path(root) / "MNIST").mkdir()
        (Path(root) / "MNIST" / "half").write_bytes(b"x")
        raise URLError("Name or service\nnot known")


@pytest.mark.parametrize("given", [True, False])
def test_a_download_goes_to_data_root_or_the_cache(tmp_path, monkeypatch, given):
    monkeypatch.setattr("torchvision.datasets.MNIST", Download)
    _, sums = write_mnist_like(tmp_path / "elsewhere", True)
    monkeypatch.setitem(images.SUMS, "mnist", sums)
    place = tmp_path / "root" if given else tmp_path / "cache" / "initlab"
    data = load("mnist", root=place if given else None)
    assert len(data.train_x) + len(data.val_x) == 60
    assert sorted(file.name for file in place.rglob("*") if file.is_file()) == sorted(f"{n}.gz" for n in images.FILES)
    assert [file.name for file in place.iterdir()] == ["MNIST"]


def test_a_download_replaces_a_link_and_does_not_write_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", Download)
    _, sums = write_mnist_like(tmp_path / "elsewhere", True)
    monkeypatch.setitem(images.SUMS, "mnist", sums)
    system = tmp_path / "system.gz"
    system.write_bytes(b"the system's own")
    link = tmp_path / "root" / "MNIST" / "raw" / f"{images.FILES[0]}.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to(system)
    load("mnist", root=tmp_path / "root")
    assert system.read_bytes() == b"the system's own"
    assert not link.is_symlink()


def test_no_network_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", NoNetwork)
    with pytest.raises(UserError) as caught:
        load("mnist", root=tmp_path / "root")
    message = str(caught.value)
    assert all(word in message for word in ("data=mnist", str(tmp_path / "root"), "not known", "data.root", "network"))
    assert "\n" not in message
    assert list((tmp_path / "root").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data=mnist cannot be downloaded to .*file.* by data\.root"):
        load("mnist", root=tmp_path / "file" / "below")


def test_a_torchvision_that_does_not_fit_torch_is_one_sentence(tmp_path, monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UserError, match=r"nms does not exist\): install torch and torchvision together from one"):
        load("cifar10", root=tmp_path)


# --- CIFAR -----------------------------------------------------------------------------------------------------------

CIFAR = [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]


def write_cifar(place: Path, name: str, monkeypatch) -> list[np.ndarray]:
    """Files of ten images in torchvision's layout, without their checksums; returns all training images."""
    import torchvision

    vision, label = next((getattr(torchvision.datasets, cls), label) for n, cls, label in CIFAR if n == name)
    folder = place / vision.base_folder
    folder.mkdir(parents=True)
    written = []
    for kind in ("train_list", "test_list"):
        names = [file for file, _ in getattr(vision, kind)]
        monkeypatch.setattr(vision, kind, [[file, None] for file in names])
        for seed, file in enumerate(names):
            pixels = np.random.default_rng(seed).integers(0, 256, (10, 3072), np.uint8)
            (folder / file).write_bytes(pickle.dumps({"data": pixels, label: list(range(10))}))
            if kind == "train_list":
                written.append(pixels.reshape(10, 3, 32, 32))
    (folder / vision.meta["filename"]).write_bytes(pickle.dumps({vision.meta["key"]: []}))
    monkeypatch.setattr(vision, "meta", {**vision.meta, "md5": None})
    return written


@pytest.mark.parametrize("name", [row[0] for row in CIFAR])
def test_cifar_comes_as_channels_first_bytes(tmp_path, monkeypatch, name):
    written = np.concatenate(write_cifar(tmp_path, name, monkeypatch))
    data = load(name, root=tmp_path, validation=0)
    assert np.array_equal(data.train_x.numpy(), written)
    assert data.train_x.is_contiguous()
    assert data.classes == {"cifar10": 10, "cifar100": 100}[name]
    assert len(data.mean) == 3
    x = data.prepare(data.train_x, torch.float64)
    assert x.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert x.square().mean(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1, 1], rel=1e-12)


@pytest.mark.parametrize("name", [row[0] for row in CIFAR])
def test_damaged_cifar_is_named(tmp_path, name):
    folder = tmp_path / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder.mkdir()
    with pytest.raises(UserError, match=f"{folder.name} are damaged .*delete that folder"):
        load(name, root=tmp_path)


# --- split and normalisation -----------------------------------------------------------------------------------------


def numbered(counts: list[int], classes: bool = True) -> Raw:
    """Samples that carry their own row number, so that a split can be followed."""
    n = sum(counts)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return Raw(x, y if classes else x.clone(), x, y if classes else x.clone(), len(counts) if classes else None, "")


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
    first = load("digits_1d", train_size=300, test_size=30)
    torch.manual_seed(99)
    other = load("digits_1d", train_size=300, test_size=30, seed=7)
    assert other.val_x is first.val_x
    assert (first.seed, other.seed) == (0, 7)


def test_images_are_standardised_by_the_training_part():
    data = load("fashion_mini")
    x = data.prepare(data.train_x, torch.float64)
    assert x.mean().item() == pytest.approx(0, abs=1e-12)
    assert x.square().mean().item() == pytest.approx(1, rel=1e-12)
    expected = (data.test_x.double() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(data.prepare(data.test_x, torch.float64), expected, rtol=1e-13, atol=1e-13)


def test_without_normalisation_images_lie_in_0_to_1():
    data = load("fashion_mini", normalize=False)
    torch.testing.assert_close(data.prepare(data.test_x), data.test_x / 255, rtol=1e-6, atol=0)
    assert data.mean == data.std == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["fashion_mini", *DRAWN])
def test_prepare_gives_a_new_tensor_of_the_dtype(name, dtype):
    data = load(name)
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
    data = make_dataset("flat", Raw(x, torch.tensor([0, 1]), x, torch.tensor([0, 1]), 2, ""), True, 0)
    assert data.prepare(x).tolist() == [[0, -1], [0, 1]]


def test_a_second_load_shares_the_tensors():
    data = load("fashion_mini")
    assert load("fashion_mini").train_x is data.train_x
    assert load("fashion_mini", validation=0.2).train_x is not data.train_x


# --- batches ---------------------------------------------------------------------------------------------------------


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


# --- drawn sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_sets_have_the_sizes_asked_for(name):
    data = load(name, train_size=200, test_size=50, validation=0.1)
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
    data = load("gaussian", validation=0)
    n = data.train_x.numel()
    # Five standard errors: a false alarm in 1.7 million draws.
    assert abs(data.train_x.mean().item()) < 5 / math.sqrt(n)
    assert abs(data.train_x.var().item() - 1) < 5 * math.sqrt(2 / n)
    assert data.mean == ()
    assert set(data.train_y.tolist()) == set(range(10))
    assert linear_accuracy(data) > 0.5


def test_digits_1d_are_balanced_and_told_apart_by_shape():
    data = load("digits_1d", validation=0)
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
    data = load("sine", frequency=frequency, train_size=4000)
    assert (data.task, data.classes, data.outputs, data.input_shape) == ("regression", None, 1, (1,))
    expected = math.sqrt(2) * torch.sin(math.pi * frequency * data.train_x)
    torch.testing.assert_close(data.train_y, expected, rtol=0, atol=1e-5)
    assert data.train_y.var().item() == pytest.approx(1, abs=5 / math.sqrt(4000))
    assert torch.equal(data.prepare(data.train_x), data.train_x)
    assert data.targets(data.train_y, torch.float64).dtype == torch.float64


def test_sine_varies_along_one_direction_and_is_noisy_in_training_alone():
    clean = load("sine", dimension=3, validation=0)
    noisy = load("sine", dimension=3, noise=0.5, validation=0)
    assert torch.equal(clean.test_y, noisy.test_y)
    assert (noisy.train_y - clean.train_y).std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * 2000))
    almost_linear = load("sine", dimension=3, frequency=1e-3, validation=0)
    direction = torch.linalg.lstsq(almost_linear.train_x, almost_linear.train_y).solution
    assert direction.norm().item() == pytest.approx(math.sqrt(2) * math.pi * 1e-3, rel=1e-4)


# --- a user's own ----------------------------------------------------------------------------------------------------

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
    data = load("custom", target=mine + name)
    assert (data.input_shape, data.train_x.dtype, data.classes, data.outputs) == (shape, dtype, classes, outputs)
    assert len(data.val_x) > 0
    assert torch.isfinite(data.prepare(data.train_x)).all()


def test_parameters_reach_the_users_function(mine):
    assert len(load("custom", target=mine + "grey", size=60, validation=0).train_x) == 60


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("two", {}, "must return ((train_x, train_y), (test_x, test_y))"),
        ("unequal", {}, "20 inputs with 19 targets"),
        ("shapes", {}, "different shapes"),
        ("nan", {}, "not finite"),
        ("negative", {}, "one integer from 0"),
        ("grey", {"sise": 3}, "cannot be called with sise"),
        ("gray", {}, "'grey'"),
    ],
)
def test_what_the_users_function_gets_wrong_is_named(mine, name, parameters, words):
    with pytest.raises(UserError) as caught:
        load("custom", target=mine + name, **parameters)
    assert words in str(caught.value)
    assert f"data.target={mine}{name}" in str(caught.value)


def test_a_bug_in_the_users_function_keeps_its_traceback(mine):
    with pytest.raises(ZeroDivisionError, match="theirs"):
        load("custom", target=mine + "bug")


# --- names and values ------------------------------------------------------------------------------------------------


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
        load(name, **arguments)
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
    data = load("fashion_mini", device="cuda")
    assert data.train_x.is_cuda
    x = data.prepare(data.train_x[next(batches(9000, 128, device="cuda"))])
    assert x.is_cuda
    torch.testing.assert_close(x.cpu(), load("fashion_mini").prepare(data.train_x.cpu()[next(batches(9000, 128))]))
