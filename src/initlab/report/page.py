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
from initlab.report.encoding import to_json
from initlab.report.figures import drawable
from initlab.report.payload import described
from initlab.system.escape import visible

HERE = Path(__file__).parent
# One scope for all of them, in this order.
SCRIPTS = ("data.js", "view.js", "theme.js", "cells.js", "lines.js", "blocks.js", "tables.js", "main.js")
TABLES = (
    ("pairs", "Which scheme is better?"),
    ("windows", "Usable learning rates"),
    ("cells", "Cells: mean over seeds"),
    ("runs", "Runs"),
    ("failures", "What went wrong, and what would mend it"),
    ("unread", "Runs that are not whole"),
)


def render(payload: Mapping[str, Any], title: str) -> bytes:
    """Return the page as UTF-8. Whatever a run is called is text in it: escaped, and never part of a script."""
    scripts = [script(get_plotlyjs()), script(own_script())]
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = templates.get_template("page.html.j2").render(
        title=visible(title),
        style=Markup((HERE / "assets" / "page.css").read_text(encoding="utf-8")),
        data=Markup(to_json(payload)),
        scripts=[Markup(text) for text in scripts],
        policy=" ".join(f"'sha256-{fingerprint(text)}'" for text in scripts),
        outcomes=described(payload),
        runs=payload["runs"]["count"],
        twice=payload["twice"],
        metric=payload["metric"],
        pictures=drawable(payload),
        tables=[(name, heading) for name, heading in TABLES if name in ("cells", "runs", "failures") or payload[name]],
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    return page.encode("utf-8", "replace")


def own_script() -> str:
    """Return our own code as one script."""
    parts = [(HERE / "assets" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "\n})();\n"


def script(text: str) -> str:
    """Return a script as a browser will hash it.

    Raises:
        ValueError: it holds what would end its element.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script that ends its own element cannot be inlined")
    return text


def fingerprint(text: str) -> str:
    """Return the base64 SHA-256 of a script, by which the page's security policy knows it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
