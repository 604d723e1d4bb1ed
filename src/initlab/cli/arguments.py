"""Arguments of the verbs that need more than typer: key=value pairs, lists of numbers, names to import."""

from collections.abc import Callable, Sequence
from typing import Any

from initlab.errors import UserError
from initlab.inspection.exceptions import call_user_code, raise_internal_error
from initlab.system.imports import describe_exception, import_torchvision, load_target
from initlab.system.yaml_text import load_yaml


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return {"key": value} of "key=value" texts, the values read as YAML.

    Args:
        texts: what was typed.
        option: the option, named in the error.

    Raises:
        UserError: there is no key or no =, or the value is not YAML.

    >>> parse_pairs(["num_classes=10", "name=he_normal"], "--arg")
    {'num_classes': 10, 'name': 'he_normal'}
    """
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"{option} {text} must be key=value.")
        try:
            pairs[key] = load_yaml(value)
        except ValueError as error:
            raise UserError(f"{option} {text}: the value cannot be read ({error}).") from error
    return pairs


def parse_integers(text: str) -> list[int]:
    """Return positive whole numbers joined by commas; [] where it is anything else.

    >>> parse_integers("64,128"), parse_integers("64,x"), parse_integers("0")
    ([64, 128], [], [])
    """
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    return numbers if len(numbers) == len(parts) and min(numbers) > 0 else []


def load_callable(target: str, key: str) -> Any:
    """Import what `package.module:name` names, torchvision with a sentence of its own where it cannot be imported.

    Raises:
        UserError: it cannot be imported.
    """
    if target.startswith("torchvision."):
        import_torchvision()
    return load_target(target, key)


def call_imported(function: Callable[..., Any], name: str, *arguments: Any, **keywords: Any) -> Any:
    """Call a function of the user's own.

    Raises:
        UserError: it fails; the sentence names it by `name`, and says how to give the arguments that it lacks.
        InternalError: code of initlab's that it calls fails.

    >>> call_imported(max, "builtins:max", 1, 2)
    2
    """
    try:
        return call_user_code(function, *arguments, **keywords)
    except Exception as error:  # the user's own code may raise anything
        raise_internal_error(error, name)
        remedy = ": give its arguments with --arg key=value." if isinstance(error, TypeError) and not arguments else "."
        raise UserError(f"{name} failed when it was called ({describe_exception(error)}){remedy}") from error
