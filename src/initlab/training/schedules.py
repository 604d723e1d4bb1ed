"""Rates over time: step -> factor on the learning rate."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    # progress in [0, 1) -> factor
    "constant": lambda progress: 1.0,
    # Loshchilov & Hutter 2017, "SGDR": half a cosine from 1 to 0
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def rate_factor(schedule: str, warmup: int, steps: int, step: int) -> float:
    """Return the factor on the rate for update `step` (from 0) of `steps`: linear warm-up, then the schedule.

    >>> [rate_factor("constant", 2, 10, s) for s in (0, 1, 2)]
    [0.5, 1.0, 1.0]
    >>> round(rate_factor("cosine", 0, 10, 5), 3)
    0.5
    """
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[schedule]((step - warmup) / max(steps - warmup, 1))


def log_spaced(steps: int, count: int) -> list[int]:
    """Return at most `count` recorded steps from 0 to `steps`: 0, then log-spaced, the end among them.

    >>> log_spaced(100, 5)
    [0, 1, 5, 22, 100]
    """
    if count <= 0:
        return []
    if count == 1 or steps < 1:
        return [0]
    if count == 2:
        return [0, steps]
    spaced = {round(steps ** (k / (count - 2))) for k in range(count - 1)}
    return sorted({0} | spaced)
