"""The table of keys: one source for `--help` and the README."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from initlab.config.schema import EXAMPLES, GROUPS, LAUNCHER_KEYS, OPTION_KEYS, Config


def key_rows(cls: Any = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (key, default, help text) for every key: of groups, of their options, of the schema, of the launcher.

    >>> key_rows()[0], key_rows()[1][0]
    (('init', 'glorot_uniform', 'init scheme'), 'init.gain')
    """
    rows = []
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.type):
            rows += key_rows(f.type, f"{prefix}{f.name}.")
        elif not prefix and f.name in GROUPS:
            rows.append((f.name, default_text(f), f.metadata["help"]))
            rows += [(k, default, text) for k, (default, text) in OPTION_KEYS.items() if k.startswith(f"{f.name}.")]
        else:
            rows.append((prefix + f.name, default_text(f), f.metadata["help"]))
    return rows if prefix else rows + [(key, *facts) for key, facts in LAUNCHER_KEYS.items()]


@functools.cache
def known_keys() -> list[str]:
    """Return every dotted key but the launcher's."""
    return [key for key, _, _ in key_rows() if key not in LAUNCHER_KEYS]


def default_text(f: dataclasses.Field) -> str:
    """Return a default as it is typed on the command line; a group's is the name of its option."""
    value = f.default_factory() if callable(f.default_factory) else f.default
    if isinstance(value, dict):
        value = value.get("name", "{}")
    return "null" if value is None else str(value).lower()


def program_name() -> str:
    """Return how this program is started: `python train.py` in a checkout, or `initlab train`."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else "initlab train"


def keys_text() -> str:
    """Return the table of keys in three columns."""
    rows = key_rows()
    left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"  {k:<{left}}  {d:<{middle}}  {text}" for k, d, text in rows) + "\n"


def examples_text() -> str:
    """Return one example for every axis, one a line."""
    width = max(map(len, EXAMPLES))
    return "\n".join(f"  {axis:<{width}}  {example}" for axis, example in EXAMPLES.items()) + "\n"


def keys_markdown() -> str:
    """Return the table of keys in Markdown."""
    lines = [f"| `{k}` | {d} | {text} |" for k, d, text in key_rows()]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *lines])
