"""What theory predicts of signals and gradients before a weight is drawn: exact in the limit of infinite width."""

from initlab.theory.critical import Critical, critical, critical_line, default_critical, doubly_critical
from initlab.theory.fixed_points import FixedPoint, fixed_point
from initlab.theory.gains import Gains, derived_gain, gains
from initlab.theory.jacobian import JacobianMoments, jacobian_moments
from initlab.theory.maps import Moments, c_map, c_map_slope, chi_1, chi_q, moments, q_map
from initlab.theory.phase_diagram import PhaseDiagram, phase_diagram

__all__ = [
    "Critical",
    "FixedPoint",
    "Gains",
    "JacobianMoments",
    "Moments",
    "PhaseDiagram",
    "c_map",
    "c_map_slope",
    "chi_1",
    "chi_q",
    "critical",
    "critical_line",
    "default_critical",
    "derived_gain",
    "doubly_critical",
    "fixed_point",
    "gains",
    "jacobian_moments",
    "moments",
    "phase_diagram",
    "q_map",
]
