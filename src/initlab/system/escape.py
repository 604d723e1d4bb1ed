"""What is shown: text that may come from a file or from the user's own code reaches no terminal and no XML as it is.

A name of a parameter, a directory or a value may hold control characters, which steer a terminal, or none that XML
knows. They are spelled out (`\\x1b`), as Python's `repr` does. Every print of initlab is the `print` of this module,
and every rich console is a `display.Screen`; a test looks for others.
"""

import builtins
import json
import unicodedata
from typing import Any


def printable(text: object) -> str:
    r"""Return a text on one line in which every character that cannot be seen is spelled out.

    What `str.isprintable` refuses is replaced: control characters, line ends, marks that turn the direction of writing,
    halves of surrogate pairs, and what Unicode does not define. Blanks of other widths stay.

    >>> printable("\x1b[31mred\n"), printable("a\u202eb"), printable("naïve – 漢字"), printable(3)
    ('\\x1b[31mred\\n', 'a\\u202eb', 'naïve – 漢字', '3')
    """
    found = str(text)
    return found if found.isprintable() else "".join(c if _is_printable(c) else _escaped(c) for c in found)


def _is_printable(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable_lines(text: object) -> str:
    r"""Return `printable` text that keeps its lines and tabs: for a layout, after its names were made visible.

    >>> printable_lines("a\tb\nc\x1b")
    'a\tb\nc\\x1b'
    """
    found = str(text)
    if found.replace("\n", "").isprintable():
        return found
    return "".join(c if _is_printable(c) or c in "\n\t" else _escaped(c) for c in found)


def print(*values: object, sep: str = " ", end: str = "\n", **options: Any) -> None:
    """Print as Python does, `printable_lines` of what is given."""
    builtins.print(printable_lines(sep.join(map(str, values))), end=end, **options)


def json_text(value: Any, indent: int | None = 2, **options: Any) -> str:
    r"""Return JSON to be printed: characters that cannot be seen are JSON's own escapes.

    >>> json_text({"name": "é\x1b\x9b"}, indent=None)
    '{"name": "é\\u001b\\u009b"}'
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, **options)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if _is_printable(c) or c == "\n" else json.dumps(c)[1:-1] for c in text)
