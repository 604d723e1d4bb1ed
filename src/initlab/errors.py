"""Exceptions with one sentence for the user, which names the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def working_directory() -> Path:
    """Return the current directory.

    Raises:
        UserError: it has been removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UserError(
            "The current directory has been removed: change to one that exists (cd) and start again."
        ) from error


class UserError(ValueError):
    """What the user asked for is impossible: the message names the key, the value and the remedy.

    The command line prints it and exits with `code`; in Python it is a `ValueError`.
    """

    code = 2


class Impossible(UserError):
    """A combination that cannot exist (dirac on an mlp): skipped inside a grid, an error when asked for alone."""


class InternalError(RuntimeError):
    """An exception of initlab's own code while it examined a user's module; its cause is that exception."""


class NoResultsLeft(UserError):
    """No run has a result to go on with; the message names how they ended. The command line exits with 1."""

    code = 1


class ProcessLimitReached(UserError):
    """The system allows no further process; `reason` is the system's message."""

    def __init__(self, reason: str):
        super().__init__(f"no further process can be started ({reason}): lower hydra.launcher.workers.")
        self.reason = reason


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop, and checkpoints are written.

    The command line prints the remedy and exits with 128 + the signal: 130 after Ctrl-C, 143 after SIGTERM.

    Attributes:
        signal: its number.
        remedy: how to continue.
    """

    def __init__(self, signal: int, remedy: str = ""):
        super().__init__(signal, remedy)
        self.signal, self.remedy = signal, remedy


def did_you_mean(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'he_normal'?"` for a mistyped name, or an empty string.

    >>> did_you_mean("he_norml", ["he_normal", "zeros"]), did_you_mean("rel", ["relu", "relu6", "prelu"])
    (" Did you mean 'he_normal'?", " Did you mean 'relu', 'relu6' or 'prelu'?")
    """
    close = [repr(match) for match in get_close_matches(name.lower(), dict.fromkeys(names), n=count, cutoff=0.6)]
    listed = " or ".join([", ".join(close[:-1]), close[-1]] if len(close) > 1 else close)
    return f" Did you mean {listed}?" if close else ""
