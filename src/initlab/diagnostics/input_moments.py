"""Mean, standard deviation, q and c of the inputs of a network."""

from collections.abc import Sequence

from torch import Tensor

from initlab.diagnostics.stats import input_correlation, mean_square


def input_moments(tensors: Sequence[Tensor], size: int) -> dict[str, float]:
    """Return mean, std, q and c of the first floating tensor that a module is fed; {} if there is none."""
    first = next((t for t in tensors if t.is_floating_point() and t.numel()), None)
    if first is None:
        return {}
    x = first.detach().double()
    found = {"mean": float(x.mean()), "std": float(x.std(correction=0)), "q": float(mean_square(x[None])[0])}
    if len(x) == size and size > 1:
        found["c"] = float(input_correlation(x.reshape(1, size, -1))[0])
    return found
