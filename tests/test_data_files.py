"""Data files: what is read is what lies there, wherever it lies; damage and a missing network are named."""

import gzip
import hashlib
import importlib
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from initlab.data import images, load_dataset, registry
from initlab.data.files import SYSTEM_FASHION
from initlab.data.idx import read_idx
from initlab.errors import UserError

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


def test_fashion_mini_is_whole_and_stratified():
    data = load_dataset("fashion_mini", validation=0.1)
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
    mini, full = load_dataset("fashion_mini", validation=0), load_dataset("fashion_mnist", validation=0)
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
    data = load_dataset("fashion_mnist", validation=0)
    for part, train in (("train", True), ("test", False)):
        theirs = FashionMNIST(str(tmp_path), train=train)
        assert torch.equal(getattr(data, f"{part}_x")[:, 0], theirs.data)
        assert torch.equal(getattr(data, f"{part}_y"), theirs.targets)
    assert data.mean[0] == pytest.approx(0.2860, abs=5e-5)
    assert data.std[0] == pytest.approx(0.3530, abs=5e-5)


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


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("place", ["root", "environment", "cache"])
def test_files_are_found(tmp_path, monkeypatch, place, layout, zipped):
    directory = {"root": tmp_path / "root", "environment": tmp_path / "env", "cache": tmp_path / "cache" / "initlab"}
    arrays, sums = write_mnist_like(directory[place] / layout, zipped)
    monkeypatch.setitem(images.MD5_SUMS, "mnist", sums)
    if place == "environment":
        monkeypatch.setenv("INITLAB_DATA", str(directory[place]))
    data = load_dataset("mnist", root=directory[place] if place == "root" else None, validation=0)
    assert np.array_equal(data.train_x[:, 0].numpy(), arrays[0])
    assert np.array_equal(data.train_y.numpy(), arrays[1])
    assert np.array_equal(data.test_x[:, 0].numpy(), arrays[2])
    assert np.array_equal(data.test_y.numpy(), arrays[3])


def test_data_root_comes_before_the_environment(tmp_path, monkeypatch):
    write_mnist_like(tmp_path / "env", False, seed=1)
    arrays, sums = write_mnist_like(tmp_path / "root", False, seed=2)
    monkeypatch.setitem(images.MD5_SUMS, "mnist", sums)
    monkeypatch.setenv("INITLAB_DATA", str(tmp_path / "env"))
    assert np.array_equal(
        load_dataset("mnist", root=str(tmp_path / "root"), validation=0).train_x[:, 0].numpy(), arrays[0]
    )


def test_files_of_another_data_set_are_refused(tmp_path):
    write_mnist_like(tmp_path, True)
    words = r"train-images-idx3-ubyte.gz is damaged \(the md5 of its content is .*downloaded again"
    with pytest.raises(UserError, match=words):
        load_dataset("mnist", root=tmp_path)


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
    monkeypatch.setitem(images.MD5_SUMS, "mnist", sums)
    place = tmp_path / "root" if given else tmp_path / "cache" / "initlab"
    data = load_dataset("mnist", root=place if given else None)
    assert len(data.train_x) + len(data.val_x) == 60
    assert sorted(file.name for file in place.rglob("*") if file.is_file()) == sorted(f"{n}.gz" for n in images.FILES)
    assert [file.name for file in place.iterdir()] == ["MNIST"]


def test_a_download_replaces_a_link_and_does_not_write_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", Download)
    _, sums = write_mnist_like(tmp_path / "elsewhere", True)
    monkeypatch.setitem(images.MD5_SUMS, "mnist", sums)
    system = tmp_path / "system.gz"
    system.write_bytes(b"the system's own")
    link = tmp_path / "root" / "MNIST" / "raw" / f"{images.FILES[0]}.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to(system)
    load_dataset("mnist", root=tmp_path / "root")
    assert system.read_bytes() == b"the system's own"
    assert not link.is_symlink()


def test_no_network_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", NoNetwork)
    with pytest.raises(UserError) as caught:
        load_dataset("mnist", root=tmp_path / "root")
    message = str(caught.value)
    assert all(word in message for word in ("data=mnist", str(tmp_path / "root"), "not known", "data.root", "network"))
    assert "\n" not in message
    assert list((tmp_path / "root").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data=mnist cannot be downloaded to .*file.* by data\.root"):
        load_dataset("mnist", root=tmp_path / "file" / "below")


def test_a_torchvision_that_does_not_fit_torch_is_one_sentence(tmp_path, monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UserError, match=r"nms does not exist\): install torch and torchvision together from one"):
        load_dataset("cifar10", root=tmp_path)


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
    data = load_dataset(name, root=tmp_path, validation=0)
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
        load_dataset(name, root=tmp_path)


# --- reading once


@pytest.fixture
def reads(monkeypatch):
    """Let nothing have been read so far, and list what is."""
    for cached in (registry._read_dataset, registry._load_on_device):
        cached.cache_clear()
    found, make = [], registry.make_dataset
    monkeypatch.setattr(registry, "make_dataset", lambda name, *given: found.append(name) or make(name, *given))
    return found


def test_what_one_thread_reads_another_waits_for(reads):
    threads = [threading.Thread(target=load_dataset, args=("fashion_mini",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == ["fashion_mini"]


def test_a_download_that_brings_no_files_is_refused(tmp_path, monkeypatch, reads):
    fetched = []
    vision = SimpleNamespace(datasets=SimpleNamespace(MNIST=lambda *given, **options: fetched.append(given)))
    monkeypatch.setattr(images, "import_torchvision", lambda: vision)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="did not come"):
        load_dataset("mnist", root=str(tmp_path))
    assert len(fetched) == 1


def test_a_source_of_the_users_may_load_another(tmp_path, monkeypatch):
    source = """
from initlab.data import load

def half(**_):
    whole = load("fashion_mini")
    return (whole.train_x[::2], whole.train_y[::2]), (whole.test_x, whole.test_y)
"""
    (tmp_path / "half_of_it.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(load_dataset("custom", target="half_of_it:half")), daemon=True
    )
    thread.start()
    thread.join(60)
    assert len(found) == 1
