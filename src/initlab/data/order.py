"""The order of the batches: keyed by (data seed, epoch), so every network of a sweep sees the same batches."""

from collections.abc import Iterator

import torch
from torch import Tensor

from initlab.errors import UserError
from initlab.system.random_streams import numpy_generator


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of full batches in n samples; the incomplete last one is dropped.

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
        steps: the step before which to stop, counted from 0; None goes on for ever.
        seed: `data.seed`, a non-negative integer.
        start: first step to yield.
        device: where the index tensors live.

    Raises:
        UserError: the batch is empty or larger than the training set.

    >>> whole = [batch.tolist() for batch in batches(5, 2, steps=4)]
    >>> whole[3:] == [batch.tolist() for batch in batches(5, 2, steps=4, start=3)]
    True
    """
    per_epoch = steps_per_epoch(n, batch_size)
    return _batches(n, batch_size, per_epoch, steps, seed, start, torch.device(device))


def _batches(
    n: int, batch_size: int, per_epoch: int, steps: int | None, seed: int, start: int, device: torch.device
) -> Iterator[Tensor]:
    step = start
    while steps is None or step < steps:
        epoch, first = divmod(step, per_epoch)
        order = torch.from_numpy(numpy_generator("batches", seed, f"{epoch}").permutation(n)).to(device)
        for position in range(first, per_epoch):
            if steps is not None and step >= steps:
                return
            yield order[position * batch_size : (position + 1) * batch_size]
            step += 1
