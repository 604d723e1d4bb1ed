"""Typing errors that Hydra would report obscurely: blanks, dashes, ranges, letters outside its grammar."""

import re
import shlex
from collections.abc import Sequence

from initlab.config.aliases import KEY_ALIASES
from initlab.config.checks import nearest_key
from initlab.config.help import known_keys
from initlab.config.option_files import option_names
from initlab.config.schema import GROUPS
from initlab.errors import UserError

QUOTED = re.compile(r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")
# A word between commas and brackets with a letter that Hydra's grammar accepts in quotes only.
NEEDS_QUOTES = re.compile(r"[^,\[\]{}()'\"]*[^\x00-\x7f][^,\[\]{}()'\"]*|[^,\[\]{}()'\"]*[~!#&;<>^`][^,\[\]{}()'\"]*")
TEXT_KEYS = ("sweep.name", "sweep.root", "data.root", "hydra.run.dir", "hydra.sweep.dir")
NUMBER_KEYS = ("seed", "depth", "width", "data.seed", "train.steps", "train.batch_size")
OVERRIDE_START = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*=")  # the beginning of an override
MAPPING_ENTRY = re.compile(r"(\s*[\w.+/]+\s*:\s*)(.*)", re.DOTALL)


def add_quotes(value: str) -> str:
    """Return a value with quotes around the words that Hydra's grammar reads in quotes only.

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
    pieces[::2] = [NEEDS_QUOTES.sub(lambda match: _quote_word(match[0], "{" in value), piece) for piece in pieces[::2]]
    return "".join(pieces)


def _quote_word(word: str, mapping: bool) -> str:
    entry = MAPPING_ENTRY.fullmatch(word) if mapping else None
    key, bare = (entry[1], entry[2]) if entry and entry[1].isascii() else ("", word)
    text = bare.strip()
    if not text:
        return word
    escaped = re.sub(r"\\(?=\\*$)", r"\\\\", text)  # a backslash at the end would escape the quote
    return f"{key}'{escaped}'"


def refuse_slips(arguments: Sequence[str]) -> None:
    """Refuse overrides that the shell split at blanks, and keys that were written as options with dashes.

    Raises:
        UserError: there is one; the message shows how to write it.

    >>> refuse_slips(["init=zeros,", "ones"])
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: `init=zeros, ones` has a blank at which the shell splits it: write init=zeros,ones.
    """
    for position, (argument, following) in enumerate(zip(arguments, [*arguments[1:], ""], strict=False)):
        parts = split_override(arguments[position:])
        if len(parts) > 1:
            whole = "".join(parts)
            whole = shlex.quote(whole) if re.search(r"[\[\]{}()*?$&;<>|]", whole) else whole
            raise UserError(f"`{' '.join(parts)}` has a blank at which the shell splits it: write {whole}.")
        refuse_dashed_key(argument, following)
        refuse_value(argument)
        refuse_blank_separated(argument, following)


def split_override(arguments: Sequence[str]) -> list[str]:
    """Return the arguments at the beginning that are parts of one override.

    >>> split_override(["width=[8,", "4]", "seed=1"]), split_override(["init", "=", "zeros"])
    (['width=[8,', '4]'], ['init', '=', 'zeros'])
    >>> split_override(["init=zeros", "seed=1"])
    ['init=zeros']
    """
    parts = [arguments[0]]
    if arguments[0].startswith("-"):
        return parts
    for following in arguments[1:]:
        text = "".join(parts)
        is_open = has_open_bracket(text) or text.endswith((",", "="))
        begins_another = following.startswith("--") or following == "-m" or OVERRIDE_START.match(following)
        continues = "=" in text and ((is_open and not begins_another) or following.startswith(","))
        if not (continues or following.startswith("=")):
            break
        parts.append(following)
    return parts[:1] if has_open_bracket("".join(parts)) else parts


def has_open_bracket(text: str) -> bool:
    """Return whether a text opens a bracket that it does not close."""
    bare = QUOTED.sub("", text)
    return any(bare.count(a) > bare.count(b) for a, b in ("[]", "{}", "()"))


def refuse_dashed_key(argument: str, following: str) -> None:
    """Refuse a key that is written as an option: `--init he_normal`, `--lr=0.1`, `--batch-size 32`.

    Raises:
        UserError: it is one.
    """
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or (key := key_meant_by(name)) is None:
        return
    if not equals and following and not following.startswith("-") and "=" not in following:
        value = following
        argument = f"{argument} {following}"
    raise UserError(f"{argument} is not a flag: keys are written without dashes, {key}={value or '…'}.")


def refuse_value(argument: str) -> None:
    """Refuse a second =, an empty item in a list, and ranges as other programs write them.

    Raises:
        UserError: there is one.
    """
    key, _, value = argument.partition("=")
    if argument.startswith("-") or not value or key in TEXT_KEYS:
        return
    bare = value.strip()
    if bare.startswith("="):
        raise UserError(f"{argument} has = twice: write {key}={bare.lstrip('= ')}.")
    if re.fullmatch(r"[^'\"\[\](){}]*", bare) and "" in (items := [part.strip() for part in bare.split(",")]):
        raise UserError(f"{argument} has a comma with nothing beside it: write {key}={','.join(filter(None, items))}.")
    if key in NUMBER_KEYS and (ends := re.fullmatch(r"(\d+)(?:\.\.\.?|-|:)(\d+)", bare)):
        first, last = int(ends[1]), int(ends[2])
        raise UserError(f"{argument} is not a number: a range is written '{key}=range({first},{last + 1})', with -m.")


def key_meant_by(name: str) -> str | None:
    """Return the key that a name stands for, or None.

    >>> [key_meant_by(name) for name in ("batch-size", "lr", "learning_rate", "config-dir", "m")]
    ['train.batch_size', 'optim.lr', 'optim.lr', None, None]
    """
    keys = [*known_keys(), "experiment"]
    form = name.replace("-", "_")
    if name in keys or form in keys:
        return name if name in keys else form
    return KEY_ALIASES.get(form) or next((key for key in keys if key.rpartition(".")[2] == form), None)


def refuse_blank_separated(argument: str, following: str) -> None:
    """Refuse values that are separated by blanks: `seed=0 1 2`, `init=zeros ones`.

    Raises:
        UserError: they are.
    """
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
    """Refuse a key with letters beyond ASCII, or blanks.

    Raises:
        UserError: it has some.
    """
    key = override.partition("=")[0].lstrip("+~")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UserError(f"{key} is not a key: keys are written in plain letters.{nearest_key(key, known_keys())}")
