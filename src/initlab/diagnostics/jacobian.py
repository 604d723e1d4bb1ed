"""Squared singular values of the Jacobians ∂h/∂input of single samples: all of them, or estimates by iteration."""

from collections.abc import Callable, Mapping, Sequence

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


def exact_spectra(outputs: Tensor, inputs: Tensor, samples: int) -> Tensor:
    """Return the squared singular values [S, k] of ∂outputs[s]/∂inputs[s], k = min(outputs, inputs) of one sample.

    Source: Pennington, Schoenholz and Ganguli 2017, *Resurrecting the sigmoid in deep learning through dynamical
    isometry*. Every row takes one backward pass; rows go through together, `ROWS_AT_ONCE` at a time.

    Arguments: `outputs` [B, …], a function of `inputs` [B, …] that requires grad, one sample of another (no batch
    norm in training mode); the first `samples` are looked at.

    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> exact_spectra(x * torch.tensor([1.0, 2.0, 3.0]), x, samples=1).tolist()
    [[1.0, 4.0, 9.0]]
    """
    flat = outputs.flatten(1)
    rows = []
    for start in range(0, flat.shape[1], ROWS_AT_ONCE):
        width = min(ROWS_AT_ONCE, flat.shape[1] - start)
        pick = torch.zeros(width, *flat.shape, dtype=flat.dtype, device=flat.device)
        pick[torch.arange(width), :samples, start + torch.arange(width)] = 1
        (found,) = torch.autograd.grad(flat, inputs, pick, retain_graph=True, is_grads_batched=True)
        rows.append(found[:, :samples].flatten(2))
    jacobians = torch.cat(rows).transpose(0, 1).double()
    return singular_squares(jacobians)


def estimated_spectra(
    outputs: Tensor, inputs: Tensor, samples: int, steps: int = STEPS, probes: int = PROBES
) -> list[Spectrum]:
    """Estimate the spectrum of J Jᵀ (or Jᵀ J, the smaller) of each of the first samples by Lanczos iteration.

    Jᵀ u is a backward pass; J v is a backward pass through that one, which is linear in u. The largest squared
    singular value converges in a few steps.

    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> round(estimated_spectra(x * torch.tensor([1.0, 2.0, 3.0]), x, samples=1)[0].largest, 5)
    9.0
    """
    cotangent = torch.zeros_like(outputs, requires_grad=True)
    (pulled,) = torch.autograd.grad(outputs, inputs, cotangent, create_graph=True)
    wide = outputs[0].numel() <= inputs[0].numel()
    size = min(outputs[0].numel(), inputs[0].numel())
    spectra = []
    for sample in range(samples):

        def through(result: Tensor, source: Tensor, v: Tensor, sample: int = sample) -> Tensor:
            whole = torch.zeros_like(result)
            whole[sample] = v.view_as(result[sample])
            return torch.autograd.grad(result, source, whole, retain_graph=True)[0][sample].flatten()

        def gram(columns: Tensor, through: Callable[..., Tensor] = through) -> Tensor:
            first, then = ((outputs, inputs), (pulled, cotangent))[:: 1 if wide else -1]
            return torch.stack([through(*then, through(*first, v)) for v in columns.T], 1)

        spectra.append(lanczos(gram, size, steps=steps, probes=probes, like=outputs.detach()))
    return spectra


def spectrum_stats(spectra: Sequence[Spectrum]) -> dict[str, float]:
    """Return mean, variance and maximum of squared singular values by the names of their statistics.

    >>> spectrum_stats([Spectrum(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))])
    {'jacobian_mean': 2.0, 'jacobian_var': 1.0, 'jacobian_max': 3.0}
    """
    means = [float((s.weights * s.nodes).sum()) for s in spectra]
    squares = [float((s.weights * s.nodes.square()).sum()) for s in spectra]
    variances = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
    count = len(spectra)
    largest = sum(s.largest for s in spectra) / count
    return {"jacobian_mean": sum(means) / count, "jacobian_var": sum(variances) / count, "jacobian_max": largest}


def choose_jacobians(
    calls: Sequence[Call], batch: int, samples: int, budget: float | None
) -> tuple[set[int], set[int]]:
    """Choose the calls whose Jacobians to compute exactly, and those to estimate, by index.

    Exact where one sample has at most `MAX_OUTPUTS` outputs, as long as the `budget` in multiplications lasts; without a
    budget as long as `MAX_MULTIPLICATIONS` does, and the last layer is estimated where it is not exact.
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
    below, found = 0.0, []
    for call in calls:
        if call.weight is not None:
            below += call.samples * call.weight.tensor.numel() / batch
        found.append((call, below))
    return found


def estimated_samples(calls: Sequence[Call], batch: int, samples: int) -> int:
    """Return how many of `samples` an estimate of the last layer's Jacobian can look at: one, where more cost too much.

    Each sample is looked at by itself, in passes that compute all of them.

    >>> estimated_samples([], 4, 4)
    4
    """
    whole = max((below for _, below in forward_costs(calls, batch)), default=0.0)
    return samples if samples**2 * STEPS * PROBES * PASSES_PER_PRODUCT * whole <= MAX_MULTIPLICATIONS else 1


def write_jacobians(
    calls: Sequence[Call], kept: Mapping[int, Tensor], inputs: Tensor, exact: set[int], estimated: set[int]
) -> None:
    """Write Jacobian statistics into the chosen calls.

    Arguments: `kept`: index of a call -> its preactivations [S, …], connected to `inputs` [S, …] by autograd.
    """
    samples = len(inputs)
    for call in calls:
        tensor = kept.get(call.index)
        if tensor is None or len(tensor) != samples or call.index not in exact | estimated:
            continue
        if not _depends_on(tensor, inputs):
            continue
        if call.index in exact:
            call.write("spectrum", exact_spectra(tensor, inputs, samples)[None])
        else:
            call.stats.update(spectrum_stats(estimated_spectra(tensor, inputs, samples)))


def _depends_on(tensor: Tensor, inputs: Tensor) -> bool:
    if not tensor.requires_grad:
        return False
    (found,) = torch.autograd.grad(tensor.sum(), inputs, retain_graph=True, allow_unused=True)
    return found is not None
