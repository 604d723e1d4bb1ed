"""What was typed for a shell or another program: blanks, dashes, letters that Hydra's grammar does not know."""

import re
import shlex
from collections.abc import Sequence

from initlab.config.aliases import KEY_ALIASES
from initlab.config.checks import known_keys, nearest_key
from initlab.config.option_files import option_names
from initlab.config.schema import GROUPS
from initlab.errors import UserError

QUOTED = re.compile(r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")
# A word between commas and brackets with a letter that Hydra's grammar takes in quotes only.
NEEDS_QUOTES = re.compile(r"[^,\[\]{}()'\"]*[^\x00-\x7f][^,\[\]{}()'\"]*|[^,\[\]{}()'\"]*[~!#&;<>^`][^,\[\]{}()'\"]*")
TEXT_KEYS = ("sweep.name", "sweep.root", "data.root", "hydra.run.dir", "hydra.sweep.dir")
NUMBER_KEYS = ("seed", "depth", "width", "data.seed", "train.steps", "train.batch_size")
OVERRIDE_START = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*=")  # the beginning of an override
MAPPING_ENTRY = re.compile(r"(\s*[\w.+/]+\s*:\s*)(.*)", re.DOTALL)


def add_quotes(value: str) -> str:
    """Put words that Hydra's grammar cannot read without quotes into quotes.

    >>> add_quotes("é"), add_quotes("[a,zoë]"), add_quotes("{init: é}"), add_quotes("'é'"), add_quotes("~/data")
    ("'é'", "[a,'zoë']", "{init: 'é'}", "'é'", "'~/data'")
    >>> add_quotes("a=b"), add_quotes("he,mine:é"), add_quotes("1,2")
    ("'a=b'", "he,'mine:é'", '1,2')
    """
    if "${" in value:
        return value
    if "=" in value and not re.search(r"['\"\[\](){}$]", value):
        return _quote_word(value, mapping=False)
    pieces = QUOTED.split(value)
    pieces[::2] = [NEEDS_QUOTES.sub(lambda found: _quote_word(found[0], "{" in value), piece) for piece in pieces[::2]]
    return "".join(pieces)


def _quote_word(word: str, mapping: bool) -> str:
    found = MAPPING_ENTRY.fullmatch(word) if mapping else None
    key, bare = (found[1], found[2]) if found and found[1].isascii() else ("", word)
    text = bare.strip()
    if not text:
        return word
    escaped = re.sub(r"\\(?=\\*$)", r"\\\\", text)  # a backslash at the end would escape the quote
    return f"{key}'{escaped}'"


def refuse_slips(arguments: Sequence[str]) -> None:
    """Refuse what a shell took apart at blanks, and keys that were written as options with dashes.

    >>> refuse_slips(["init=zeros,", "ones"])
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: `init=zeros, ones` has a blank at which the shell splits it: write init=zeros,ones.
    """
    place = 0
    while place < len(arguments):
        parts = split_override(arguments[place:])
        if len(parts) > 1:
            whole = shlex.quote("".join(parts)) if re.search(r"[\[\]{}()*?$&;<>|]", "".join(parts)) else "".join(parts)
            raise UserError(f"`{' '.join(parts)}` has a blank at which the shell splits it: write {whole}.")
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        refuse_dashed_key(arguments[place], following)
        refuse_value(arguments[place])
        refuse_blank_separated(arguments[place], following)
        place += 1


def split_override(arguments: Sequence[str]) -> list[str]:
    """Return the arguments from the first on that are one override, taken apart.

    >>> split_override(["width=[8,", "4]", "seed=1"]), split_override(["init", "=", "zeros"]), split_override(["init=zeros", "seed=1"])
    (['width=[8,', '4]'], ['init', '=', 'zeros'], ['init=zeros'])
    """
    parts = [arguments[0]]
    if arguments[0].startswith("-"):
        return parts
    for following in arguments[1:]:
        text = "".join(parts)
        comes_apart = has_open_bracket(text) or text.endswith((",", "="))
        another = following.startswith("--") or following == "-m" or OVERRIDE_START.match(following)
        goes_on = ("=" in text and comes_apart and not another) or following.startswith("=")
        if not (goes_on or (following.startswith(",") and "=" in text)):
            break
        parts.append(following)
    return parts[:1] if has_open_bracket("".join(parts)) else parts


def has_open_bracket(text: str) -> bool:
    """Does a text open brackets that it does not close?"""
    bare = QUOTED.sub("", text)
    return any(bare.count(a) > bare.count(b) for a, b in ("[]", "{}", "()"))


def refuse_dashed_key(argument: str, following: str) -> None:
    """Refuse a key that is written as an option: `--init he_normal`, `--lr=0.1`, `--batch-size 32`."""
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or (key := key_meant_by(name)) is None:
        return
    if not equals and following and not following.startswith("-") and "=" not in following:
        value = following
        argument = f"{argument} {following}"
    raise UserError(f"{argument} is no flag: keys are written without dashes, {key}={value or '…'}.")


def refuse_value(argument: str) -> None:
    """Refuse a second =, an empty place in a list, and ranges as other programs write them."""
    key, _, value = argument.partition("=")
    if argument.startswith("-") or not value or key in TEXT_KEYS:
        return
    bare = value.strip()
    if bare.startswith("="):
        raise UserError(f"{argument} has = twice: write {key}={bare.lstrip('= ')}.")
    if re.fullmatch(r"[^'\"\[\](){}]*", bare) and "" in (places := [part.strip() for part in bare.split(",")]):
        raise UserError(f"{argument} has a comma with nothing beside it: write {key}={','.join(filter(None, places))}.")
    if key in NUMBER_KEYS and (found := re.fullmatch(r"(\d+)(?:\.\.\.?|-|:)(\d+)", bare)):
        first, last = int(found[1]), int(found[2])
        raise UserError(f"{argument} is no number: a range is written '{key}=range({first},{last + 1})', with -m.")


def key_meant_by(name: str) -> str | None:
    """Return the key that a name stands for, or None.

    >>> key_meant_by("batch-size"), key_meant_by("lr"), key_meant_by("learning_rate"), key_meant_by("config-dir"), key_meant_by("m")
    ('train.batch_size', 'optim.lr', 'optim.lr', None, None)
    """
    known = known_keys()
    form = name.replace("-", "_")
    found = next((key for key in (name, form) if key in known or key in GROUPS or key == "experiment"), None)
    leaves = [key for key in known if key.rpartition(".")[2] == form]
    return found or KEY_ALIASES.get(form) or (leaves[0] if leaves else None)


def refuse_blank_separated(argument: str, following: str) -> None:
    """Refuse values that blanks tell apart: `seed=0 1 2`, `init=zeros ones`."""
    key, equals, _ = argument.partition("=")
    if not equals or argument.startswith("-") or not following or "=" in following or following.startswith(("-", "~")):
        return
    group = key.lstrip("+~")
    if group in TEXT_KEYS:
        raise UserError(f"`{argument} {following}` has a blank: write '{argument} {following}', in quotes.")
    number = re.fullmatch(r"[\d.]+(e[+-]?\d+)?", following)
    if number or (group in GROUPS and following in option_names(group)):
        raise UserError(
            f"`{argument} {following}` gives {key} two values: join them by a comma without a blank, "
            f"{argument},{following}, in train.py with -m."
        )


def refuse_strange_key(override: str) -> None:
    """Refuse a key with letters that no key has."""
    key = override.partition("=")[0].lstrip("+~")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UserError(f"{key} is not a key: keys are written in plain letters.{nearest_key(key, known_keys())}")
