"""Prepare what was typed for Hydra: split flags from overrides, replace aliases, refuse what is neither."""

import fnmatch
import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from initlab.config.aliases import ALIASES
from initlab.config.checks import RULES, nearest_key
from initlab.config.help import known_keys
from initlab.config.option_files import option_names, option_values
from initlab.config.schema import EXAMPLES, GROUPS
from initlab.config.typing_slips import NEEDS_QUOTES, add_quotes, refuse_strange_key
from initlab.errors import UserError
from initlab.system.imports import is_target

# Hydra's flags that are followed by a value.
VALUE_FLAGS = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--experimental-rerun", "--info", "-i"),
}
SWEEP_FUNCTION = re.compile(r"\b(?:range|glob|choice|interval)\([^()]*\)")
LIST_KEYS = ("sweep.exclude", "sweep.grids", "tune.rates")  # whose values are lists; they are never swept
TARGET_OR_WORD = re.compile(r"[\w.]+:[\w.]+|[A-Za-z_0-9]+")  # `he` in `module:he` is no alias
NOT_A_NAME = re.compile(r"\s*(|-?\d[\d.e+-]*|true|false|\{.*|\[.*)\s*", re.IGNORECASE)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags, with their values, and the overrides of what was typed, in any order.

    >>> split_arguments(["init=zeros", "-m", "--config-dir", "mine", "seed=1,2"])
    (['-m', '--config-dir', 'mine'], ['init=zeros', 'seed=1,2'])
    """
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        value_of_flag = flags and flags[-1] in VALUE_FLAGS and "=" not in argument
        (flags if argument.startswith("-") or value_of_flag else overrides).append(argument)
    return flags, overrides


def canonical_overrides(overrides: Iterable[str]) -> list[str]:
    """Replace aliases in the overrides of `init` and `act`, but not in `glob(…)`, which matches names of files.

    >>> canonical_overrides(["init=xavier_uniform_,he", "act=choice(swish,ReLU)", "init=glob(*)", "seed=1"])
    ['init=glorot_uniform,he_normal', 'act=choice(silu,relu)', 'init=glob(*)', 'seed=1']
    >>> canonical_overrides(["init=he,mine:he"])
    ['init=he_normal,mine:he']
    """
    return [canonical_override(override) for override in overrides]


def canonical_override(override: str) -> str:
    """Return one override with aliases replaced, and with the quotes and brackets that Hydra's grammar needs.

    >>> canonical_override("sweep.grids=[{init: glob(he*), seed: range(2)}]")
    "sweep.grids=[{init: 'glob(he*)', seed: 'range(2)'}]"
    >>> canonical_override("sweep.exclude={init: zeros}")
    'sweep.exclude=[{init: zeros}]'
    """
    key, equals, value = override.partition("=")
    if equals and (NEEDS_QUOTES.search(value) or "=" in value):
        value = add_quotes(value)
        override = f"{key}={value}"
    group = key.lstrip("+~")
    if group == "sweep.grids" and not re.search("['\"]", value):
        # Hydra's grammar has no sweeps inside a value; as texts they are expanded with their grid.
        value = re.sub(SWEEP_FUNCTION, lambda match: repr(match.group()), value)
        override = f"{key}={value}"
    if group in ("sweep.exclude", "sweep.grids") and re.fullmatch(r"\s*\{.*\}\s*", value):
        return f"{key}=[{value}]"  # a list without its brackets
    if not equals or group not in ALIASES or "glob(" in value:
        return override
    words = re.sub(TARGET_OR_WORD, lambda word: word[0] if ":" in word[0] else canonical_option(group, word[0]), value)
    return f"{key}={words}"


def canonical_option(group: str, word: str) -> str:
    """Return the option that an alias or torch's own name (`xavier_normal_`, `ReLU`) stands for, else the word itself.

    >>> canonical_option("init", "kaiming_normal_"), canonical_option("act", "LeakyReLU")
    ('he_normal', 'leaky_relu')
    >>> canonical_option("act", "choice"), canonical_option("optim", "adam")
    ('choice', 'adam')
    """
    for form in (word, word.removesuffix("_"), word.removesuffix("_").lower()):
        name = ALIASES.get(group, {}).get(form, form)
        if group in ALIASES and name in option_names(group):
            return name
    return word


def refuse_malformed(overrides: Iterable[str]) -> None:
    """Refuse what is no `key=value`, a group without a name, and a glob among names; Hydra parses the rest.

    Raises:
        UserError: there is one; the message shows how to write it.
    """
    for override in overrides:
        refuse_strange_key(override)
        key, equals, value = override.partition("=")
        bare = key.lstrip("+~").strip()
        if not bare:
            raise UserError(f"{override} has no key: write key=value, for example depth=3.")
        if not equals and not override.startswith("~"):
            raise UserError(f"{override} has no value: {spelling_hint(bare)}")
        if (match := re.fullmatch(r"(?:(.+),)?\s*glob\(([^()\[\]]+)\)\s*(?:,(.+))?", value)) and (match[1] or match[3]):
            before, pattern, after = match.groups()
            if any(is_target(name.strip()) for name in f"{before or ''},{after or ''}".split(",")):
                names = [name for name in fnmatch.filter(option_names(bare), pattern.strip()) if name != "custom"]
                remedy = ",".join(filter(None, (before, *names, after)))
            else:
                remedy = f"glob([{','.join(filter(None, (before, pattern, after)))}])"
            raise UserError(f"{override} mixes a glob and names: write '{bare}={remedy}'.")
        parent, _, leaf = bare.rpartition(".")
        if parent in LIST_KEYS and not leaf.isdigit():
            raise UserError(f"{bare} is not a key: {parent} is a list, for example {RULES[parent][2]}.")
        if bare in GROUPS and (match := re.fullmatch(r"\s*\[([^\[\]]*,[^\[\]]*)\]\s*", value)):
            remedy = f"several are written {bare}={match[1]}, in train.py with -m"
            raise UserError(f"{override} names no option of {bare}: {remedy}.")
        if bare in GROUPS and equals and (NOT_A_NAME.fullmatch(value) or value in ("null", "None")):
            raise UserError(
                f"{override} names no option of {bare}: choose one of {', '.join(option_names(bare))}, "
                f"for example {EXAMPLES[bare].split()[0]}."
            )


def defer_option_keys(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with keys of swept options written as a sweep of one value.

    Hydra first composes the sweep as a whole, from what is not swept; there `optim.beta1=0.8` would meet the default
    option, which may lack that key. In a sub-grid or an experiment any option may be swept.

    >>> defer_option_keys(["optim=adam,adamw", "optim.beta1=0.8", "init.gain=2"])
    ['optim=adam,adamw', 'optim.beta1=choice(0.8)', 'init.gain=2']
    """
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(list(overrides))
    except HydraException:
        return list(overrides)  # Hydra reports it when it composes
    any_group = any(o.key_or_group in ("experiment", "sweep.grids") for o in parsed)
    swept = {*GROUPS} if any_group else {*GROUPS} & {o.key_or_group for o in parsed if o.is_sweep_override()}
    deferred = []
    for text, override in zip(overrides, parsed, strict=True):
        group, _, leaf = override.key_or_group.partition(".")
        single = not override.is_delete() and not override.is_sweep_override()
        key, _, value = text.partition("=")
        deferred.append(f"{key}=choice({value})" if group in swept and leaf and single and value.strip() else text)
    return deferred


def is_sweep_experiment(overrides: Iterable[str]) -> bool:
    """Return whether an experiment is chosen whose file declares a sweep, so that -m is not needed.

    >>> is_sweep_experiment(["experiment=he_2015", "seed=0"]), is_sweep_experiment(["seed=0"])
    (True, False)
    """
    names = [o.partition("=")[2].strip() for o in overrides if o.lstrip("+").startswith("experiment=")]
    values = (option_values("experiment", name) for name in names)
    return any(((value or {}).get("hydra") or {}).get("mode") == "MULTIRUN" for value in values)


def spelling_hint(word: str) -> str:
    """Return how a word without = was probably meant: a key without a value, or an option without its group."""
    key, colon, value = word.partition(":")
    if word in ("help", "version"):
        return f"write --{word}."
    if colon and value and key.strip() in (*GROUPS, "experiment", *known_keys()):
        return f"keys and values are joined by =, so write {key.strip()}={value.strip()}."
    for group in (*GROUPS, "experiment"):
        if (name := canonical_option(group, word)) in option_names(group):
            return f"write {group}={name}."
    known = known_keys()
    if word in known and (word in EXAMPLES or word in RULES):
        example = EXAMPLES[word].split()[0].rstrip(",") if word in EXAMPLES else RULES[word][2]
        return f"write {word}=…, for example {example}."
    if own := [key for key in known if key.startswith(f"{word}.")]:
        example = next(RULES[key][2] for key in own if key in RULES)
        return f"it is a section of keys, {', '.join(own)}: write for example {example}."
    if word in known:
        return f"write {word}=…."
    return f"write key=value, for example depth=3.{nearest_key(word, known)}"


def typed_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of overrides.

    >>> typed_keys(["init=zeros", "+model.norm=batch"])
    ['init', 'model.norm']
    """
    return [override.lstrip("+~").partition("=")[0] for override in overrides]
