"""Fill the tables of docs/ from the catalogues and the schema; `--check` only reports whether they are current."""

import argparse
import re
import sys
from pathlib import Path

from initlab.activations import ACTIVATIONS
from initlab.config.help import keys_markdown as keys
from initlab.initialize.procedures import PROCEDURES
from initlab.schemes import SCHEMES

DOCS = Path(__file__).parents[1] / "docs"


def schemes() -> str:
    """One row per scheme: name, law, source."""
    rows = [f"| `{s.name}` | {escape(s.formula)} | {escape(source(s.reference))} |" for s in SCHEMES.values()]
    return "\n".join(["| `init=` | law (n = fan_in, m = fan_out) | source |", "|---|---|---|", *rows])


def procedures() -> str:
    """One row per procedure: name, what it does, what it needs, source."""
    rows = [
        f"| `{p.name}` | {escape(p.formula)} | {', '.join(p.needs)} | {escape(source(p.reference))} |"
        for p in PROCEDURES.values()
    ]
    return "\n".join(["| `init=` | what it does | needs or brings | source |", "|---|---|---|---|", *rows])


def activations() -> str:
    """All activations in one line."""
    return ", ".join(f"`{name}`" for name in ACTIVATIONS) + "."


def source(reference: str) -> str:
    """Cut a reference after its year; the title is in `initlab schemes --json`."""
    return re.sub(r"(\b(?:1[89]|20)\d\d\b).*", r"\1", reference) or "–"


def escape(text: str) -> str:
    """Keep a text from being read as a table's edge."""
    return text.replace("|", "\\|")


# page -> its tables: what stands between <!-- name --> and <!-- /name --> is made by the function
TABLES = {
    "catalogue.md": {"schemes": schemes, "procedures": procedures, "activations": activations},
    "keys.md": {"keys": keys},
}


def filled(page: str) -> str:
    """Return the text of a page with its tables replaced."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, make in TABLES[page].items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        table = make()
        text, count = re.subn(pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"docs/{page} has no <!-- {name} --> … <!-- /{name} --> to fill.")
    return text


def main() -> None:
    """Fill the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a page is not current")
    check = parser.parse_args().check
    pages = {page: filled(page) for page in TABLES}
    stale = [page for page, text in pages.items() if (DOCS / page).read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(f"{', '.join(stale)} not current: run python scripts/fill_docs.py.")
    for page in stale:
        (DOCS / page).write_text(pages[page], encoding="utf-8")


if __name__ == "__main__":
    main()
