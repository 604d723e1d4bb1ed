"""Escape text that comes from files or user code before it reaches a terminal or XML.

Names of parameters, directories and values may hold control characters, which steer a terminal, or characters that XML
does not allow. They are written as escapes (`\\x1b`), as Python's `repr` does. Every print of initlab is the `print` of
this module, and every rich console is a `terminal.SafeConsole`; a test looks for others.
"""

import builtins
import json
import unicodedata
from typing import Any


def printable(text: object) -> str:
    r"""Return a text on one line in which every character that is not printable is escaped.

    By `str.isprintable` these are control characters, line ends, marks that change the direction of writing, halves of
    surrogate pairs, and code points that Unicode does not define. Blanks of other widths stay.

    >>> printable("\x1b[31mred\n"), printable("a\u202eb"), printable("naïve – 漢字"), printable(3)
    ('\\x1b[31mred\\n', 'a\\u202eb', 'naïve – 漢字', '3')
    """
    line = str(text)
    return line if line.isprintable() else "".join(c if _is_printable(c) else _escaped(c) for c in line)


def _is_printable(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable_lines(text: object) -> str:
    r"""Return `printable` text that keeps its lines and tabs: for a layout whose names are escaped already.

    >>> printable_lines("a\tb\nc\x1b")
    'a\tb\nc\\x1b'
    """
    lines = str(text)
    if lines.replace("\n", "").isprintable():
        return lines
    return "".join(c if _is_printable(c) or c in "\n\t" else _escaped(c) for c in lines)


def print(*values: object, sep: str = " ", end: str = "\n", **options: Any) -> None:
    """Print `printable_lines` of the values as Python does."""
    builtins.print(printable_lines(sep.join(map(str, values))), end=end, **options)


def json_text(value: Any, indent: int | None = 2, **options: Any) -> str:
    r"""Return JSON for a terminal: characters that are not printable are JSON's own escapes.

    >>> json_text({"name": "é\x1b\x9b"}, indent=None)
    '{"name": "é\\u001b\\u009b"}'
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, **options)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if _is_printable(c) or c == "\n" else json.dumps(c)[1:-1] for c in text)
