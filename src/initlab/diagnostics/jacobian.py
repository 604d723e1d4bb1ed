"""Squared singular values of the Jacobians ∂h/∂input of single samples: all of them, or estimates by iteration."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from initlab.diagnostics.spectrum import Spectrum, lanczos
from initlab.diagnostics.trace.records import Call
from initlab.diagnostics.units import singular_squares

ROWS_AT_ONCE = 64
"""Rows of a Jacobian that are computed by one batched backward pass."""

MAX_OUTPUTS = 1024
"""Outputs of a layer up to which its whole Jacobian is computed."""

MAX_MULTIPLICATIONS = 2e12
"""Multiplications that Jacobians may cost at all, also where they are asked for; beyond, the output's is estimated."""

STEPS, PROBES = 24, 2
"""Of an estimate: steps of Lanczos iteration, and vectors that it starts from."""

PASSES_PER_PRODUCT = 6
"""Forward passes that a product with J Jᵀ costs: a backward pass, and one through that."""


def exact_spectra(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Return the squared singular values [S, k] of ∂outputs[s]/∂inputs[s], k = min(outputs, inputs) of one sample.

    Source: Pennington, Schoenholz and Ganguli 2017, *Resurrecting the sigmoid in deep learning through dynamical
    isometry*. Every row takes one backward pass; `ROWS_AT_ONCE` rows are computed together.

    Args:
        outputs: [S, …], a function of the inputs, each sample of its own input alone (no batch norm in training mode).
        inputs: [S, …], requires grad.

    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> exact_spectra(x * torch.tensor([1.0, 2.0, 3.0]), x).tolist()[0]
    [1.0, 4.0, 9.0]
    """
    flat = outputs.flatten(1)
    rows = []
    for columns in torch.arange(flat.shape[1]).split(ROWS_AT_ONCE):
        pick = torch.zeros(len(columns), *flat.shape, dtype=flat.dtype, device=flat.device)
        pick[torch.arange(len(columns)), :, columns] = 1
        (gradients,) = torch.autograd.grad(flat, inputs, pick, retain_graph=True, is_grads_batched=True)
        rows.append(gradients.flatten(2))
    return singular_squares(torch.cat(rows).transpose(0, 1).double())


def estimated_spectra(outputs: Tensor, inputs: Tensor) -> list[Spectrum]:
    """Estimate the spectrum of J Jᵀ (or Jᵀ J, the smaller) of each sample by Lanczos iteration.

    Jᵀ u is a backward pass; J v is a backward pass through that one, which is linear in u. The largest squared
    singular value converges in a few steps.

    Args:
        outputs: [S, …], as in `exact_spectra`.
        inputs: [S, …], requires grad.

    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> round(estimated_spectra(x * torch.tensor([1.0, 2.0, 3.0]), x)[0].largest, 5)
    9.0
    """
    cotangent = torch.zeros_like(outputs, requires_grad=True)
    (pulled,) = torch.autograd.grad(outputs, inputs, cotangent, create_graph=True)
    sizes = outputs[0].numel(), inputs[0].numel()
    maps = ((outputs, inputs), (pulled, cotangent))
    first, second = maps if sizes[0] <= sizes[1] else maps[::-1]

    def multiply(pair: tuple[Tensor, Tensor], sample: int, v: Tensor) -> Tensor:
        result, source = pair
        whole = torch.zeros_like(result)
        whole[sample] = v.view_as(result[sample])
        return torch.autograd.grad(result, source, whole, retain_graph=True)[0][sample].flatten()

    def gram(sample: int, columns: Tensor) -> Tensor:
        return torch.stack([multiply(second, sample, multiply(first, sample, v)) for v in columns.T], 1)

    return [
        lanczos(partial(gram, sample), min(sizes), steps=STEPS, probes=PROBES, like=outputs.detach())
        for sample in range(len(inputs))
    ]


def spectrum_stats(spectra: Sequence[Spectrum]) -> dict[str, float]:
    """Return mean, variance and maximum of squared singular values by the names of their statistics.

    >>> spectrum_stats([Spectrum(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))])
    {'jacobian_mean': 2.0, 'jacobian_var': 1.0, 'jacobian_max': 3.0}
    """
    means = [float((s.weights * s.nodes).sum()) for s in spectra]
    squares = [float((s.weights * s.nodes.square()).sum()) for s in spectra]
    variances = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
    columns = {"jacobian_mean": means, "jacobian_var": variances, "jacobian_max": [s.largest for s in spectra]}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def choose_jacobians(
    calls: Sequence[Call], batch: int, samples: int, budget: float | None
) -> tuple[set[int], set[int]]:
    """Choose the calls whose Jacobians to compute exactly, and those to estimate, by index.

    Exact where one sample has at most `MAX_OUTPUTS` outputs, as far as the budget goes; without a budget the last layer
    is estimated where it is not exact.

    Args:
        calls: the calls of a pass.
        batch: number of inputs of that pass.
        samples: number of samples.
        budget: multiplications that they may cost; `MAX_MULTIPLICATIONS` if None.
    """
    exact: set[int] = set()
    spent = 0.0
    for call, below in forward_costs(calls, batch):
        outputs = call.samples * call.units / batch
        cost = 2 * outputs * below * samples
        if 0 < outputs <= MAX_OUTPUTS and spent + cost <= (MAX_MULTIPLICATIONS if budget is None else budget):
            exact.add(call.index)
            spent += cost
    last = max((call.index for call in calls if call.samples), default=0)
    return exact, {last} - exact if budget is None and last else set()


def forward_costs(calls: Sequence[Call], batch: int) -> list[tuple[Call, float]]:
    """Return each call with the multiplications of one input's forward pass up to it."""
    costs = (call.samples * call.weight.tensor.numel() / batch if call.weight is not None else 0.0 for call in calls)
    return list(zip(calls, accumulate(costs), strict=True))


def estimated_samples(calls: Sequence[Call], batch: int, samples: int) -> int:
    """Return how many of `samples` an estimate of the last layer's Jacobian can use: one, where more cost too much.

    Each sample has passes of its own, which compute all of them.

    >>> estimated_samples([], 4, 4)
    4
    """
    whole = max((below for _, below in forward_costs(calls, batch)), default=0.0)
    return samples if samples**2 * STEPS * PROBES * PASSES_PER_PRODUCT * whole <= MAX_MULTIPLICATIONS else 1


def write_jacobians(
    calls: Sequence[Call], kept: Mapping[int, Tensor], inputs: Tensor, exact: set[int], estimated: set[int]
) -> None:
    """Write Jacobian statistics into the chosen calls.

    Args:
        calls: the calls of a pass.
        kept: index of a call -> its preactivations [S, …], connected to the inputs by autograd.
        inputs: the inputs [S, …].
        exact: indices of calls whose Jacobians are computed.
        estimated: indices of calls whose Jacobians are estimated.
    """
    for call in calls:
        tensor = kept.get(call.index)
        if tensor is None or len(tensor) != len(inputs) or call.index not in exact | estimated:
            continue
        total = tensor.sum()
        if (
            not total.requires_grad
            or torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)[0] is None
        ):
            continue  # it does not depend on the inputs
        if call.index in exact:
            call.write("spectrum", exact_spectra(tensor, inputs)[None])
        else:
            call.stats.update(spectrum_stats(estimated_spectra(tensor, inputs)))
