"""Gains: factors on the standard deviation of the weights that keep a moment at 1 from layer to layer.

Sources: Glorot and Bengio (2010), *Understanding the difficulty of training deep feedforward neural networks*; He et
al. (2015), *Delving deep into rectifiers*; Poole et al. (2016) for the critical one.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.theory.critical import critical
from initlab.theory.fixed_points import require_continuous
from initlab.theory.maps import moments


@dataclass(frozen=True)
class Gains:
    """Factors on the std of the weights that keep a moment at 1 for preactivations z ~ N(0, 1).

    Attributes:
        forward: 1/√E[φ²], keeps second moments.
        backward: 1/√E[φ′²], keeps gradients.
        centred: 1/std φ, keeps the variance.

    They are inf where the moment is 0.
    """

    forward: float
    backward: float
    centred: float


@lru_cache(maxsize=1024)
def _cached_gains(act: Activation) -> Gains:
    require_continuous(act)
    phi = moments(act, 1.0)
    variance = float(phi.square) - float(phi.mean) ** 2
    return Gains(
        *(1 / math.sqrt(x) if x > 0 else math.inf for x in (float(phi.square), float(phi.slope_square), variance))
    )


def gains(act: Any) -> Gains:
    """Return the gains of an activation: 1/√E[φ²], 1/√E[φ′²] and 1/√Var φ at z ~ N(0, 1).

    A φ that jumps or grows too fast has none, which is a `UserError`.

    >>> round(gains("tanh").forward, 12), round(gains("relu").backward, 12)
    (1.592537419723, 1.414213562373)
    """
    return _cached_gains(activation(act))


def derived_gain(kind: str, act: Any, sigma_b: float = 0.0) -> float:
    """Return the gain that `init.gain=forward|backward|critical` stands for on a layer fed by this activation.

    Args:
        kind: forward, backward, or critical: σ_w with χ₁ = 1 at `sigma_b`.
        act: activation by name, record or callable.
        sigma_b: standard deviation of the biases.

    Raises:
        UserError: the gain is infinite or does not exist, or `kind` is unknown.

    >>> round(derived_gain("critical", "relu"), 6), round(derived_gain("forward", "tanh"), 6)
    (1.414214, 1.592537)
    """
    if kind == "critical":
        return critical(act, sigma_b=sigma_b).sigma_w
    if kind not in ("forward", "backward"):
        raise UserError(f"init.gain={kind!r} is unknown: choose paper, forward, backward, critical or a number.")
    gain = float(getattr(gains(act), kind))
    if not math.isfinite(gain):
        raise UserError(
            f"activation {activation(act).name!r} has no {kind} gain: the moment it divides by is not positive."
        )
    return gain
