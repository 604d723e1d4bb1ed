"""Mean and variance of the squared singular values of a network's input-output Jacobian.

For a chain of L equal layers, χ = σ_w² µ₁ and µ_k = E[φ′^(2k)],

    mean = χ^L,   variance = L χ^(2L) (µ₂/µ₁² − 1 − s₁),   s₁ = −1 for Gaussian weights and 0 for orthogonal ones

Sources: Pennington, Schoenholz and Ganguli (2017), *Resurrecting the sigmoid in deep learning through dynamical
isometry*; (2018), *The emergence of spectral universality in deep networks*. `JacobianChain` carries the same two
moments, as traces, through layers of any widths: free compression for semi-orthogonal weights, Wishart moments for
Gaussian ones.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from initlab.activations import activation
from initlab.errors import UserError
from initlab.theory.interpolation import InterpolatedMoments
from initlab.theory.maps import check_sigmas, moments
from initlab.theory.nodes import LayerNode


@dataclass(frozen=True)
class JacobianMoments:
    """Mean and variance of the squared singular values."""

    mean: float
    variance: float


def jacobian_moments(act: Any, sigma_w: float, q: float, depth: int, orthogonal: bool = False) -> JacobianMoments:
    """Return the moments of the squared singular values of a chain of `depth` equal square layers at second moment `q`.

    Raises:
        UserError: a depth that is not a whole number ≥ 0, or a negative σ_w.

    >>> round(jacobian_moments("linear", sigma_w=1.0, q=1.0, depth=4).variance, 9)
    4.0
    >>> round(jacobian_moments("relu", sigma_w=2**0.5, q=1.0, depth=3, orthogonal=True).variance, 9)
    3.0
    """
    sigma_w, _ = check_sigmas(sigma_w)
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise UserError(f"depth={depth!r} must be a whole number of layers ≥ 0.")
    phi = moments(activation(act), q)
    first, second = float(phi.slope_square), float(phi.slope_fourth)
    chi = sigma_w**2 * first
    spread = (second / first**2 if first else 0.0) - 1 + (0 if orthogonal else 1)
    return JacobianMoments(chi**depth, depth * chi ** (2 * depth) * spread)


@dataclass(frozen=True)
class JacobianChain:
    """Traces of M = J Jᵀ and M² for J = ∂h_l/∂input, per sample [S], and the slopes φ′ that the next layer takes in."""

    inputs: int
    units: int
    first: np.ndarray
    second: np.ndarray
    slopes: InterpolatedMoments | None = None

    @classmethod
    def start(cls, squares: np.ndarray) -> "JacobianChain | None":
        """Return the Jacobian of the input with respect to itself, of the size of the first layer; None for maps."""
        return cls(0, 0, np.ones(len(squares)), np.ones(len(squares))) if squares.ndim == 1 else None

    def through(self, layer: Any, slopes: InterpolatedMoments | None) -> "JacobianChain | None":
        """Pass a dense layer; `slopes` is the response of the activation behind it."""
        if not isinstance(layer, LayerNode) or layer.taps is not None or layer.keep != 1:
            return None
        if not self.units:
            size = int(layer.fan_in)
            whole = np.full_like(self.first, size)
            return JacobianChain(size, size, whole, whole.copy()).through(layer, slopes)
        first, second = self.first, self.second
        if self.slopes is not None:
            mu_1, mu_2 = self.slopes.slope_square, self.slopes.slope_fourth
            # φ′² multiplies rows: off the diagonal independently, on it with its own square
            first, second = mu_1 * first, mu_1**2 * second + (mu_2 - mu_1**2) * first**2 / self.units
        n, m, v = self.units, layer.units, layer.variance
        if not layer.orthogonal:
            first, second = v * m * first, v * v * (m * first**2 + m * (m + 1) * second)
        else:
            gain = v * max(n, m)
            share = min(m / n, 1.0)
            second = gain**2 * (share**2 * second + (share - share**2) * first**2 / n)
            first = gain * share * first
        return JacobianChain(self.inputs, m, first, second, slopes)

    @property
    def mean(self) -> float:
        """Mean squared singular value, over min(inputs, units) of them and over samples."""
        return float(self.first.mean() / min(self.inputs, self.units))

    @property
    def variance(self) -> float:
        """Variance of the squared singular values of one sample's Jacobian, averaged over samples."""
        count = min(self.inputs, self.units)
        return math.fsum(self.second / count - (self.first / count) ** 2) / len(self.first)
