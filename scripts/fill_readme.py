"""Write the README's tables anew from the catalogues and the schema; `--check` only says whether they are current."""

import argparse
import re
import sys
from pathlib import Path

from initlab.activations import ACTIVATIONS
from initlab.config.help import markdown as keys
from initlab.initialize.procedures import PROCEDURES
from initlab.reproduce.pages import summary
from initlab.schemes import SCHEMES

README = Path(__file__).parents[1] / "README.md"


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


def verdicts() -> str:
    """What the experiments came to when they were last measured."""
    return summary(README.parent / "docs" / "experiments", links="docs/experiments/")


MAKERS = {
    "schemes": schemes,
    "procedures": procedures,
    "activations": activations,
    "keys": keys,
    "verdicts": verdicts,
}


def filled(text: str) -> str:
    """Return the README with what stands between the markers replaced."""
    for name, make in MAKERS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        table = make()
        text, count = re.subn(pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"README.md has no <!-- {name} --> … <!-- /{name} --> to fill")
    return text


def main() -> None:
    """Fill, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = README.read_text()
    if parser.parse_args().check:
        sys.exit(0 if filled(text) == text else "README.md is not current: run python scripts/fill_readme.py")
    README.write_text(filled(text))


if __name__ == "__main__":
    main()
