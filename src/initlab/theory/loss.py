"""The loss at initialization and its gradient at the logits: softmax cross-entropy on logits ~ N(0, q)."""

from functools import lru_cache

import numpy as np

from initlab.system.random_streams import numpy_generator


@lru_cache(maxsize=16)
def _standard_logits(classes: int, count: int = 4096) -> np.ndarray:
    half = numpy_generator("logits", name=f"{classes}").standard_normal((count // 2, classes))
    return np.concatenate([half, -half])


def logit_gradient(q: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean square over classes of p − y, for logits of second moment `q` [S] and labels independent of them.

    E[(p_k − y_k)²] = (Σ E[p²] + 1 − 2/K)/K, from (1 − 1/K)/K at small logits to twice that at large ones. E[Σ p²] is
    an average over 4096 fixed draws, good to 1 %.

    >>> logit_gradient(np.array([0.0]), 10).round(6).tolist()
    [0.09]
    """
    rounded = np.log(np.clip(q, 1e-12, 1e12))
    knots, values = _probability_table(classes)
    return (np.interp(rounded, knots, values) + 1 - 2 / classes) / classes


@lru_cache(maxsize=16)
def _probability_table(classes: int) -> tuple[np.ndarray, np.ndarray]:
    knots = np.log(np.geomspace(1e-12, 1e12, 193))
    draws = _standard_logits(classes)
    values = []
    for knot in knots:
        logits = draws * np.exp(knot / 2)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        values.append(float((p * p).sum(axis=1).mean()))
    return knots, np.array(values)
