"""What typer refuses, as one sentence with the remedy."""

import re
from collections.abc import Sequence
from typing import NoReturn

from initlab.errors import UserError
from initlab.system.streams import print_stderr

VERB_HINTS = {"sweep": "train -m …", "run": "train …", "multirun": "train -m …", "list": "schemes"}


def usage_error_text(message: str, arguments: Sequence[str]) -> str:
    """Return typer's message about wrong arguments with the remedy."""
    verb = arguments[0] if arguments else ""
    if (option := re.match(r"No such option: (--?[\w-]+)", message)) and verb == "predict":
        from initlab.config.typing_slips import refuse_dashed_key

        position = next((k for k, word in enumerate(arguments) if word.partition("=")[0] == option[1]), 0)
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        try:
            refuse_dashed_key(arguments[position], following)
        except UserError as error:
            return str(error)
    sentence = message if message.endswith("?") else f"{message}."
    unknown_verb = message.startswith("No such command")
    if unknown_verb and verb in VERB_HINTS:
        return f"{sentence} Write `initlab {VERB_HINTS[verb]}`."
    if verb and not verb.startswith("-") and not unknown_verb:
        return f"{sentence} `initlab {verb} --help` explains it."
    return f"{sentence} `initlab --help` lists the verbs."


def exit_with_usage_error(sentence: str) -> NoReturn:
    """Print what the user got wrong, and exit with code 2.

    Raises:
        SystemExit: always.
    """
    print_stderr(f"initlab: {sentence}")
    raise SystemExit(2)
