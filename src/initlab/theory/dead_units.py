"""The fraction of dead units: those of ReLU and its kin whose preactivations fall where φ = 0 on every sample."""

import math
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from initlab.activations import Activation
from initlab.theory.quadrature import GAUSSIAN_CUTOFF, NODES, WEIGHTS, phi_values


def predict_dead_fraction(act: Activation, q: np.ndarray, c: float, samples: int) -> float | None:
    """Return the probability that a unit is exactly 0 on all of `samples` inputs of mean correlation `c`, if known.

    With every pair of inputs correlated by c, the preactivations share a part √c z, and the probability is
    E_z[Φ((t/√q − √c z)/√(1 − c))^samples], where φ = 0 up to t: for one ReLU and one sample a half.

    Args:
        act: the activation.
        q: second moments [S]; a map [S, *map] has no answer: its positions are samples of unknown correlation.
        c: mean correlation of the inputs.
        samples: number of inputs.

    >>> from initlab.activations import ACTIVATIONS
    >>> round(predict_dead_fraction(ACTIVATIONS["relu"], np.ones(4), 0.0, 4), 6)
    0.0625
    >>> [predict_dead_fraction(ACTIVATIONS["tanh"], q, 0.0, 4) for q in (np.ones(4), np.zeros(4))]
    [0.0, 1.0]
    """
    if not q.any():  # every unit is at φ(0), always
        return float(phi_values(act, np.zeros(1))[0] == 0)
    edge = dead_below(act)
    if edge == -math.inf:
        return 0.0
    if q.ndim > 1 or not math.isfinite(c) or samples < 2:
        return None
    shared = min(max(c, 0.0), 1.0)
    threshold = edge / math.sqrt(max(float(q.mean()), np.finfo(float).tiny))
    # the step that Φ takes where c → 1 is at z = threshold: panels shrink towards it
    widths = GAUSSIAN_CUTOFF * 0.5 ** np.arange(40)
    cuts = np.unique(
        np.clip(
            np.concatenate([threshold - widths, [threshold], threshold + widths]), -GAUSSIAN_CUTOFF, GAUSSIAN_CUTOFF
        )
    )
    half, middle = np.diff(cuts)[:, None] / 2, (cuts[:-1, None] + cuts[1:, None]) / 2
    z, weight = middle + half * NODES, half * WEIGHTS * np.exp(-((middle + half * NODES) ** 2) / 2)
    below = ndtr((threshold - math.sqrt(shared) * z) / math.sqrt(max(1 - shared, 1e-300)))
    return float((weight * below**samples).sum() / math.sqrt(2 * math.pi))


@lru_cache(maxsize=256)
def dead_below(act: Activation) -> float:
    """Return the kink up to which φ is exactly 0, −inf if there is none: 0 for ReLU, −3 for Hardswish.

    >>> from initlab.activations import ACTIVATIONS
    >>> dead_below(ACTIVATIONS["hardswish"])
    -3.0
    """
    below = [k for k in act.kinks if not phi_values(act, k - np.geomspace(1e-9, 1e3, 64)).any()]
    return max(below, default=-math.inf)
