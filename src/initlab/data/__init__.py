"""Whole data sets as tensors: loaded once, split once, normalized per batch, the same batches for every network.

>>> data = load("gaussian", train_size=1000, test_size=100)
>>> next(batches(len(data.train_x), 128)).shape
torch.Size([128])
"""

from initlab.data.dataset import Dataset
from initlab.data.order import batches, steps_per_epoch
from initlab.data.registry import DATASETS, load_dataset

load = load_dataset

__all__ = ["DATASETS", "Dataset", "batches", "load", "load_dataset", "steps_per_epoch"]
