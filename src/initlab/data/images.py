"""Image data sets: the MNIST family by initlab's reader, CIFAR by torchvision's classes."""

import warnings
from pathlib import Path

import numpy as np
import torch

from initlab.data.dataset import RawDataset
from initlab.data.files import SYSTEM_FASHION, download, find_files
from initlab.data.idx import read_idx
from initlab.errors import UserError
from initlab.system.imports import import_torchvision

SHIPPED = Path(__file__).parent / "fashion_mini"

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

# md5 of the decompressed bytes: gzip files of the same content differ from one packager to the next.
MD5_SUMS = {
    "fashion_mini": (
        "dcab80f289ae27ab265a1e83946f0a1c",
        "611c8ef3426a757a9375a0ac94541d26",
        "4bb4107a89a38933fbbdd67584195c68",
        "84e2038f7beda4c0f4093bde29339f63",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
}

# The name of torchvision's class, which is also its folder.
TORCHVISION_CLASSES = {"fashion_mnist": "FashionMNIST", "mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def fashion_mini(directories: tuple[Path, ...]) -> RawDataset:
    """Read the shipped tenth of Fashion-MNIST: the first 1,000 training and 200 test images of each class.

    Xiao, Rasul & Vollgraf 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms.
    """
    paths = [SHIPPED / f"{name}.gz" for name in FILES]
    return _read_idx_files("fashion_mini", paths, "reinstall initlab, the file belongs to the package")


def fashion_mnist(directories: tuple[Path, ...]) -> RawDataset:
    """Read Fashion-MNIST, 60,000 training and 10,000 test images of clothes in 10 classes.

    Xiao, Rasul & Vollgraf 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms.
    """
    return _idx_or_download("fashion_mnist", directories, ("", "fashion_mnist", "fashion-mnist"))


def mnist(directories: tuple[Path, ...]) -> RawDataset:
    """Read MNIST, 60,000 training and 10,000 test images of digits.

    LeCun, Cortes & Burges 1998, The MNIST Database of Handwritten Digits.
    """
    others = tuple(directory for directory in directories if directory != SYSTEM_FASHION)
    return _idx_or_download("mnist", others, ("mnist", ""))


def cifar10(directories: tuple[Path, ...]) -> RawDataset:
    """Read CIFAR-10, 50,000 training and 10,000 test color images in 10 classes.

    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    return _cifar("cifar10", directories, "cifar-10-batches-py", 10)


def cifar100(directories: tuple[Path, ...]) -> RawDataset:
    """Read CIFAR-100, 50,000 training and 10,000 test color images in 100 classes.

    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    return _cifar("cifar100", directories, "cifar-100-python", 100)


def _idx_or_download(name: str, directories: tuple[Path, ...], layouts: tuple[str, ...]) -> RawDataset:
    places = (f"{TORCHVISION_CLASSES[name]}/raw", *layouts)
    paths = find_files(directories, places, FILES)
    if paths is None:
        vision = getattr(import_torchvision().datasets, TORCHVISION_CLASSES[name])
        download(name, directories, lambda place: vision(place, download=True))
        paths = find_files(directories, places, FILES)
    if paths is None:
        raise UserError(f"data={name} was downloaded, but some of {', '.join(FILES)} did not come; run it again.")
    system = SYSTEM_FASHION in paths[0].parents
    remedy = "reinstall Debian's package dataset-fashion-mnist" if system else "delete it, and it is downloaded again"
    return _read_idx_files(name, paths, remedy)


def _read_idx_files(name: str, paths: list[Path], remedy: str) -> RawDataset:
    parts = [read_idx(path, md5, remedy) for path, md5 in zip(paths, MD5_SUMS[name], strict=True)]
    tensors = (part.unsqueeze(1) if part.dim() == 3 else part.long() for part in parts)
    train_x, train_y, test_x, test_y = tensors
    return RawDataset(train_x, train_y, test_x, test_y, 10, f"idx files in {paths[0].parent}")


def _cifar(name: str, directories: tuple[Path, ...], folder: str, classes: int) -> RawDataset:
    vision = getattr(import_torchvision().datasets, TORCHVISION_CLASSES[name])
    place = _find_cifar(directories, folder)
    if place is None:
        download(name, directories, lambda fresh: vision(fresh, download=True))
        place = _find_cifar(directories, folder)
    try:
        with warnings.catch_warnings():
            # CIFAR's pickles are of Python 2, and NumPy warns of how they spell a dtype.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            train, test = (vision(str(place), train=train) for train in (True, False))
    except RuntimeError as error:  # torchvision's own check of the md5 sums
        raise UserError(
            f"Data files in {place}/{folder} are damaged ({error}): delete that folder, and it is downloaded again."
        ) from error
    train_x, test_x = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    train_y, test_y = (torch.from_numpy(np.array(part.targets, dtype=np.int64)) for part in (train, test))
    return RawDataset(train_x, train_y, test_x, test_y, classes, f"torchvision's files in {place}/{folder}")


def _find_cifar(directories: tuple[Path, ...], folder: str) -> Path | None:
    return next((directory for directory in directories if (directory / folder).is_dir()), None)
