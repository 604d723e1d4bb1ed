"""What the user got wrong, said in one sentence with the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user asked for cannot be: the message names the key, the value and the remedy.

    The command line prints it as one sentence and exits with code 2; in Python it is a `ValueError`.
    """


class Impossible(UserError):
    """A combination that cannot exist (dirac on an mlp): skipped inside a grid, an error when asked for alone."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'he_normal'?"` for a mistyped name, or an empty string.

    >>> nearest("he_norml", ["he_normal", "zeros"])
    " Did you mean 'he_normal'?"
    """
    close = get_close_matches(name.lower(), list(names), n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
