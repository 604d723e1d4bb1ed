"""One self-contained page: everything inline, nothing fetched, and only the inlined scripts may run in it."""

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from initlab import __version__
from initlab.errors import UserError
from initlab.report.encoding import script_json
from initlab.report.figures import drawable_figures
from initlab.report.payload import ReportData, collect_report_data, outcome_counts
from initlab.system.escape import printable
from initlab.system.files import write_atomically

REPORT_DIRECTORY = Path(__file__).parent
ASSETS = REPORT_DIRECTORY / "assets"
# All scripts have one scope and are inlined in this order; those of the figures come before main.js.
SCRIPTS = ("data.js", "view.js", "theme.js", "series.js", "tables.js")
PAGE_TABLES = (
    ("pairs", "Which scheme is better?"),
    ("windows", "Usable learning rates"),
    ("cells", "Cells: mean over seeds"),
    ("runs", "Runs"),
    ("failures", "What went wrong, and what would mend it"),
    ("unread", "Runs that are not whole"),
)


@dataclass(frozen=True)
class WrittenReport:
    """Where the page is, and its data."""

    path: Path
    data: ReportData


def write_report(paths: Sequence[str | Path], out: str | Path | None = None, title: str | None = None) -> WrittenReport:
    """Write one self-contained page about all runs at or below `paths`, atomically.

    Args:
        paths: directories of runs or sweeps.
        out: the file, or a directory for its `report.html`; by default `report.html` inside the one path, or in the
            current directory where there are several.
        title: the page's heading, by default the paths' names.

    Raises:
        UserError: a path does not exist, there is no run, or the file cannot be written.
    """
    roots = [Path(path) for path in paths]
    data = collect_report_data(roots)
    place = Path(out) if out is not None else (roots[0] if len(roots) == 1 else Path())
    path = place / "report.html" if place.is_dir() or place.suffix.lower() not in (".html", ".htm") else place
    require_parent(path)
    names = ", ".join(dict.fromkeys(root.resolve().name for root in roots))
    write_atomically(path, render_report(data.payload, names if title is None else title))
    return WrittenReport(path, data)


def require_parent(path: Path) -> None:
    """Check that a file's directory exists.

    Raises:
        UserError: it does not.
    """
    if not path.parent.is_dir():
        raise UserError(f"There is no directory {path.parent} for {path.name}: make it first, or choose another.")


def render_report(payload: dict[str, Any], title: str) -> bytes:
    """Return the page of a report as UTF-8."""
    figures = drawable_figures(payload)
    drawing = [figure.script or ASSETS / "figures" / f"{figure.name}.js" for figure in figures]
    files = [*(ASSETS / name for name in SCRIPTS), *drawing, ASSETS / "main.js"]
    script = "\n".join(["(() => {\n'use strict';", *(file.read_text(encoding="utf-8") for file in files), "})();\n"])
    tables = [(name, title) for name, title in PAGE_TABLES if name in ("cells", "runs", "failures") or payload[name]]
    return render_page(
        "page.html.j2", title, payload, script, figures=figures, tables=tables, outcomes=outcome_counts(payload)
    )


def render_page(template: str, title: str, payload: dict[str, Any], script: str, **values: Any) -> bytes:
    """Return a page as UTF-8. All names in it are text: escaped, and never part of a script.

    Args:
        template: file name of the template.
        title: the heading.
        payload: data for the script, as plain values.
        script: JavaScript that runs after Plotly's.
        values: further variables of the template.

    Raises:
        ValueError: the script would end its own element.
    """
    scripts = [inline_script(get_plotlyjs()), inline_script(script)]
    templates = Environment(
        loader=FileSystemLoader(REPORT_DIRECTORY / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = templates.get_template(template).render(
        title=printable(title),
        style=Markup((ASSETS / "page.css").read_text(encoding="utf-8")),
        payload=payload,
        data=Markup(script_json(payload)),
        scripts=[Markup(text) for text in scripts],
        policy=" ".join(f"'sha256-{script_hash(text)}'" for text in scripts),
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        **values,
    )
    return page.encode("utf-8", "replace")


def inline_script(text: str) -> str:
    """Return a script with the line ends that a browser hashes.

    Raises:
        ValueError: it holds what would end its element.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script that ends its own element cannot be inlined")
    return text


def script_hash(text: str) -> str:
    """Return the base64 SHA-256 of a script, by which the page's security policy allows it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
