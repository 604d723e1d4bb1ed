"""One self-contained page: everything inline, nothing fetched, and no script but our own may run in it."""

import base64
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from initlab import __version__
from initlab.report.encoding import script_json
from initlab.report.figures import drawable_figures
from initlab.report.payload import outcome_counts
from initlab.system.escape import printable

REPORT_DIRECTORY = Path(__file__).parent
# One scope for all of them, in this order.
SCRIPTS = ("data.js", "view.js", "theme.js", "cells.js", "lines.js", "blocks.js", "tables.js", "main.js")
PAGE_TABLES = (
    ("pairs", "Which scheme is better?"),
    ("windows", "Usable learning rates"),
    ("cells", "Cells: mean over seeds"),
    ("runs", "Runs"),
    ("failures", "What went wrong, and what would mend it"),
    ("unread", "Runs that are not whole"),
)


def render_report(payload: Mapping[str, Any], title: str) -> bytes:
    """Return the page as UTF-8. Whatever a run is called is text in it: escaped, and never part of a script."""
    scripts = [inline_script(get_plotlyjs()), inline_script(bundled_script())]
    templates = Environment(
        loader=FileSystemLoader(REPORT_DIRECTORY / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = templates.get_template("page.html.j2").render(
        title=printable(title),
        style=Markup((REPORT_DIRECTORY / "assets" / "page.css").read_text(encoding="utf-8")),
        data=Markup(script_json(payload)),
        scripts=[Markup(text) for text in scripts],
        policy=" ".join(f"'sha256-{script_hash(text)}'" for text in scripts),
        outcomes=outcome_counts(payload),
        runs=payload["runs"]["count"],
        twice=payload["twice"],
        metric=payload["metric"],
        pictures=drawable_figures(payload),
        tables=[
            (name, heading) for name, heading in PAGE_TABLES if name in ("cells", "runs", "failures") or payload[name]
        ],
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    return page.encode("utf-8", "replace")


def bundled_script() -> str:
    """Return our own code as one script."""
    parts = [(REPORT_DIRECTORY / "assets" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "\n})();\n"


def inline_script(text: str) -> str:
    """Return a script as a browser will hash it.

    Raises:
        ValueError: it holds what would end its element.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script that ends its own element cannot be inlined")
    return text


def script_hash(text: str) -> str:
    """Return the base64 SHA-256 of a script, by which the page's security policy knows it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
