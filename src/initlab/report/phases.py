"""The map of phases as one self-contained page: ξ_c, χ₁, q* or c* over (σ_w, σ_b), with the critical line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from initlab.errors import UserError
from initlab.report.encoding import encode_floats, json_numbers
from initlab.report.page import ASSETS, render_page, require_parent
from initlab.system.files import write_atomically

QUANTITIES: dict[str, tuple[str, str, bool]] = {
    "xi_c": ("depth scale ξ_c", "layers over which a difference between two inputs shrinks by e", True),
    "chi_1": ("χ₁", "factor on the gradient's mean square per layer", False),
    "q_star": ("fixed point q*", "mean square that preactivations tend to", True),
    "c_star": ("fixed point c*", "correlation that two inputs tend to", False),
}
"""Name -> its title, what it is, and whether its logarithm is drawn."""


def write_phases(
    path: Path,
    act: str,
    diagram: Any,
    line: np.ndarray,
    marks: Sequence[tuple[str, float, float]] = (),
    repelling: bool = False,
) -> None:
    """Write the page atomically.

    Args:
        path: the file, ending in .html.
        act: name of the activation.
        diagram: what `theory.phase_diagram` returns: axes `sigma_w` [w] and `sigma_b` [b], and arrays [b, w] under the
            names of `QUANTITIES`.
        line: σ_w of the critical line at each σ_b, NaN where there is none.
        marks: schemes as (name, σ_w, σ_b).
        repelling: whether a part of the line repels.

    Raises:
        UserError: the file has another ending, or cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {path} must end in .html: the map is a page.")
    require_parent(path)
    payload = phase_payload(diagram, line, marks) | {"repelling": repelling}
    quantities = [(name, title, meaning) for name, (title, meaning, _) in QUANTITIES.items()]
    script = (ASSETS / "phases.js").read_text(encoding="utf-8")
    write_atomically(path, render_page("phases.html.j2", f"Phases of {act}", payload, script, quantities=quantities))


def phase_payload(diagram: Any, line: np.ndarray, marks: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Return the page's data: arrays as base64, row after row from the lowest σ_b."""
    return {
        "sigma_w": json_numbers(diagram.sigma_w),
        "sigma_b": json_numbers(diagram.sigma_b),
        "quantities": [
            {"name": name, "title": title, "log": log, "values": encode_floats(np.ravel(getattr(diagram, name)))}
            for name, (title, _, log) in QUANTITIES.items()
        ],
        "line": json_numbers(line),
        "marks": [{"name": name, "x": float(x), "y": float(y)} for name, x, y in marks],
    }
