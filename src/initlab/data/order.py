"""The order of the batches, keyed by (data seed, epoch), so that every network of a sweep gets the same batches."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from initlab.errors import UserError
from initlab.system.random_streams import numpy_generator


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of full batches in n samples; the incomplete last one is dropped.

    Args:
        n: number of training samples.
        batch_size: samples in a batch.

    Raises:
        UserError: the batch is empty or larger than the training set.

    >>> steps_per_epoch(9000, 128)
    70
    """
    if not 1 <= batch_size <= n:
        raise UserError(f"train.batch_size={batch_size} must lie between 1 and the {n} training samples there are.")
    return n // batch_size


def batches(
    n: int,
    batch_size: int,
    steps: int | None = None,
    seed: int = 0,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Yield the row indices of one batch after another, each epoch a fresh permutation drawn from (seed, epoch) alone.

    The incomplete last batch of an epoch is dropped: all steps average over the same number of samples, and its rows
    come up in other epochs. Batch k is the same whether the iteration starts at 0 or, to resume, at k.

    Args:
        n: number of training samples.
        batch_size: samples in a batch.
        steps: the step before which to stop, counted from 0; None does not stop.
        seed: `data.seed`, a non-negative integer.
        start: first step to yield.
        device: the device of the index tensors.

    Raises:
        UserError: the batch is empty or larger than the training set.

    >>> whole = [batch.tolist() for batch in batches(5, 2, steps=4)]
    >>> whole[3:] == [batch.tolist() for batch in batches(5, 2, steps=4, start=3)]
    True
    """
    per_epoch = steps_per_epoch(n, batch_size)  # refuses a bad size at once, not at the first batch
    device = torch.device(device)

    def generate() -> Iterator[Tensor]:
        order = torch.empty(0)
        for step in itertools.count(start) if steps is None else range(start, steps):
            epoch, position = divmod(step, per_epoch)
            if position == 0 or step == start:
                order = torch.from_numpy(numpy_generator("batches", seed, f"{epoch}").permutation(n)).to(device)
            yield order[position * batch_size : (position + 1) * batch_size]

    return generate()
