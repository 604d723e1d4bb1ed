"""Cut the shipped subset out of Fashion-MNIST: the first images of each class, in the order of the files.

    python scripts/make_fashion_mini.py --source /usr/share/datasets/fashion-mnist

The order of Fashion-MNIST is already random, so "the first" is a fair sample that needs no random numbers and comes out
the same everywhere.
"""

import argparse
import gzip
import hashlib
from pathlib import Path

import torch

from initlab.data.idx import read_idx
from initlab.data.images import FILES, MD5_SUMS, SHIPPED


def make(source: Path, target: Path, per_class: dict[str, int]) -> None:
    """Write four gzipped idx files and print the md5 of what is in them."""
    target.mkdir(parents=True, exist_ok=True)
    sums = dict(zip(FILES, MD5_SUMS["fashion_mnist"], strict=True))
    for split, count in per_class.items():
        names = [name for name in FILES if name.startswith(split)]
        images, labels = (read_idx(_either(source / name), sums[name]) for name in names)
        chosen = first_of_each_class(labels, count)
        for name, values in zip(names, (images[chosen], labels[chosen]), strict=True):
            content = idx_bytes(values)
            # No time stamp and no file name in the header: the same input gives the same file.
            (target / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
            print(hashlib.md5(content).hexdigest(), name, tuple(values.shape))


def first_of_each_class(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sorted row numbers of the first `count` samples of every class."""
    rows = [torch.nonzero(labels == label).flatten()[:count] for label in torch.unique(labels)]
    return torch.cat(rows).sort().values


def idx_bytes(values: torch.Tensor) -> bytes:
    """Return unsigned bytes in the idx format."""
    header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.numpy().tobytes()


def _either(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="directory of the four idx files, gzipped or not")
    parser.add_argument("--target", type=Path, default=SHIPPED, help="directory to write (default: inside the package)")
    parser.add_argument("--train", type=int, default=1000, help="training images per class")
    parser.add_argument("--test", type=int, default=200, help="test images per class")
    arguments = parser.parse_args()
    make(arguments.source, arguments.target, {"train": arguments.train, "t10k": arguments.test})
