"""The map of phases as one self-contained page: ξ_c, χ₁, q* or c* over (σ_w, σ_b), with the critical line."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from initlab import __version__
from initlab.errors import UserError
from initlab.report.encoding import encode_floats, json_numbers, script_json
from initlab.report.page import REPORT_DIRECTORY, inline_script, script_hash
from initlab.system.files import write_atomically

QUANTITIES: dict[str, tuple[str, str, bool]] = {
    "xi_c": ("depth scale ξ_c", "layers over which a difference between two inputs shrinks by e", True),
    "chi_1": ("χ₁", "factor on the gradient's mean square per layer", False),
    "q_star": ("fixed point q*", "mean square that preactivations tend to", True),
    "c_star": ("fixed point c*", "correlation that two inputs tend to", False),
}
"""Name -> its title, what it is, and whether its logarithm is drawn."""


class PhaseGrid(Protocol):
    """What is drawn: axes [w] and [b], and arrays [b, w] under the names of `QUANTITIES`."""

    @property
    def sigma_w(self) -> np.ndarray: ...  # noqa: D102

    @property
    def sigma_b(self) -> np.ndarray: ...  # noqa: D102


def write_phases(
    path: Path,
    act: str,
    diagram: PhaseGrid,
    line: np.ndarray,
    marks: Sequence[tuple[str, float, float]] = (),
    repelling: bool = False,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the file, ending in .html.
        act: what the activation is called.
        diagram: what `theory.phase_diagram` returns.
        line: σ_w of the critical line at each σ_b, NaN where there is none.
        marks: schemes as (name, σ_w, σ_b).
        repelling: whether a part of the line repels.

    Raises:
        UserError: the file has another ending, or cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {path} must end in .html: the map is a page.")
    if not path.parent.is_dir():
        raise UserError(f"There is no directory {path.parent} for {path.name}: make it first, or choose another.")
    write_atomically(path, render_phases(act, phase_payload(diagram, line, marks) | {"repelling": repelling}))


def phase_payload(diagram: PhaseGrid, line: np.ndarray, marks: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
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


def render_phases(act: str, payload: dict[str, Any]) -> bytes:
    """Return the page as UTF-8; no script but plotly's and our own may run in it."""
    scripts = [
        inline_script(get_plotlyjs()),
        inline_script((REPORT_DIRECTORY / "assets" / "phases.js").read_text(encoding="utf-8")),
    ]
    templates = Environment(
        loader=FileSystemLoader(REPORT_DIRECTORY / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = templates.get_template("phases.html.j2").render(
        title=f"Phases of {act}",
        style=Markup((REPORT_DIRECTORY / "assets" / "page.css").read_text(encoding="utf-8")),
        data=Markup(script_json(payload)),
        scripts=[Markup(text) for text in scripts],
        policy=" ".join(f"'sha256-{script_hash(text)}'" for text in scripts),
        quantities=[(name, title, meaning) for name, (title, meaning, _) in QUANTITIES.items()],
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    return page.encode("utf-8", "replace")
