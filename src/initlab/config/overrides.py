"""What was typed, before Hydra sees it: flags and overrides parted, aliases rewritten, what is neither refused."""

import fnmatch
import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from initlab.config.aliases import ALIASES
from initlab.config.checks import RULES, known_keys, nearest_key
from initlab.config.option_files import option_names, option_values
from initlab.config.schema import EXAMPLES, GROUPS
from initlab.config.typing_slips import NEEDS_QUOTES, add_quotes, refuse_strange_key
from initlab.errors import UserError
from initlab.system.imports import is_target

# Hydra's flags that are followed by a value.
VALUE_FLAGS = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
} | {
    "--experimental-rerun",
    "--info",
    "-i",
}
SWEEP_FUNCTION = re.compile(r"\b(?:range|glob|choice|interval)\([^()]*\)")
LIST_KEYS = ("sweep.exclude", "sweep.grids", "tune.rates")
TARGET_OR_WORD = re.compile(r"[\w.]+:[\w.]+|[A-Za-z_0-9]+")  # in `module:he` nothing is an alias
NOT_A_NAME = re.compile(r"\s*(|-?\d[\d.e+-]*|true|false|\{.*|\[.*)\s*", re.IGNORECASE)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what was typed into flags (with their values) and overrides, so that flags may stand anywhere.

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
    """Replace aliases in the overrides of `init` and `act`; `glob(…)` is left alone, for it matches file names.

    >>> canonical_overrides(["init=xavier_uniform_,he", "act=choice(swish,ReLU)", "init=glob(*)", "seed=1"])
    ['init=glorot_uniform,he_normal', 'act=choice(silu,relu)', 'init=glob(*)', 'seed=1']
    >>> canonical_overrides(["init=he,mine:he"])
    ['init=he_normal,mine:he']
    """
    return [canonical_override(override) for override in overrides]


def canonical_override(override: str) -> str:
    """Rewrite one override if it chooses a scheme or an activation, or holds grids.

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
        # Hydra's grammar has no sweeps inside a value; as texts they are expanded with the grid they stand in.
        value = re.sub(SWEEP_FUNCTION, lambda found: repr(found.group()), value)
        override = f"{key}={value}"
    if group in ("sweep.exclude", "sweep.grids") and re.fullmatch(r"\s*\{.*\}\s*", value):
        return f"{key}=[{value}]"  # one cell, or several with commas: the brackets of the list were left out
    if not equals or group not in ALIASES or "glob(" in value:
        return override
    words = re.sub(TARGET_OR_WORD, lambda word: word[0] if ":" in word[0] else canonical_option(group, word[0]), value)
    return f"{key}={words}"


def canonical_option(group: str, word: str) -> str:
    """Return the canonical name of an alias, of torch's `xavier_normal_` and of torch's `ReLU`; else the word itself.

    >>> canonical_option("init", "kaiming_normal_"), canonical_option("act", "LeakyReLU"), canonical_option("act", "choice")
    ('he_normal', 'leaky_relu', 'choice')
    """
    for form in (word, word.removesuffix("_"), word.removesuffix("_").lower()):
        name = ALIASES[group].get(form, form)
        if name in option_names(group):
            return name
    return word


def refuse_malformed(overrides: Iterable[str]) -> None:
    """Refuse what is no `key=value`, and a group that is given no name; the rest is Hydra's grammar to judge."""
    for override in overrides:
        refuse_strange_key(override)
        key, equals, value = override.partition("=")
        bare = key.lstrip("+~").strip()
        if not bare:
            raise UserError(f"{override} has no key: write key=value, for example depth=3.")
        if not equals and not override.startswith("~"):
            raise UserError(f"{override} has no value: {spelling_hint(bare)}")
        if found := re.fullmatch(r"(?:(.+),)?\s*glob\(([^()\[\]]+)\)\s*(?:,(.+))?", value):
            before, pattern, after = found.groups()
            if any(is_target(name.strip()) for name in f"{before or ''},{after or ''}".split(",")):
                names = [name for name in fnmatch.filter(option_names(bare), pattern.strip()) if name != "custom"]
                mixed = ",".join(filter(None, (before, *names, after)))
                raise UserError(f"{override} mixes a glob and names: write '{bare}={mixed}'.")
            if before or after:
                mixed = ",".join(filter(None, (before, pattern, after)))
                raise UserError(f"{override} mixes a glob and names: write '{bare}=glob([{mixed}])'.")
        listed, _, leaf = bare.rpartition(".")
        if listed in LIST_KEYS and not leaf.isdigit():
            raise UserError(f"{bare} is not a key: {listed} is a list, for example {RULES[listed][2]}.")
        if bare in GROUPS and (found := re.fullmatch(r"\s*\[([^\[\]]*,[^\[\]]*)\]\s*", value)):
            several = f"several are written {bare}={found[1]}, in train.py with -m"
            raise UserError(f"{override} names no option of {bare}: {several}.")
        if bare in GROUPS and equals and (NOT_A_NAME.fullmatch(value) or value in ("null", "None")):
            raise UserError(
                f"{override} names no option of {bare}: choose one of {', '.join(option_names(bare))}, "
                f"for example {EXAMPLES[bare].split()[0]}."
            )


def defer_option_keys(overrides: Sequence[str]) -> list[str]:
    """Let the keys of options that are swept wait for them, as one value that is swept, too.

    Hydra first composes the whole sweep, with what is not swept; there `optim.beta1=0.8` would meet the default option,
    which need not have that key. In a sub-grid or an experiment any option may be swept.

    >>> defer_option_keys(["optim=adam,adamw", "optim.beta1=0.8", "init.gain=2"])
    ['optim=adam,adamw', 'optim.beta1=choice(0.8)', 'init.gain=2']
    """
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(list(overrides))
    except HydraException:
        return list(overrides)  # it will say so in its own words
    anywhere = any(o.key_or_group in ("experiment", "sweep.grids") for o in parsed)
    swept = set(GROUPS) if anywhere else {o.key_or_group for o in parsed if o.is_sweep_override()}
    found = []
    for text, one in zip(overrides, parsed, strict=True):
        group, _, leaf = one.key_or_group.partition(".")
        waits = group in GROUPS and group in swept and leaf and not one.is_delete() and not one.is_sweep_override()
        key, _, value = text.partition("=")
        found.append(f"{key}=choice({value})" if waits and value.strip() else text)
    return found


def is_sweep_experiment(overrides: Iterable[str]) -> bool:
    """Is an experiment chosen whose file says that it is a sweep, so that nobody has to say -m?

    >>> is_sweep_experiment(["experiment=he_2015", "seed=0"]), is_sweep_experiment(["seed=0"])
    (True, False)
    """
    names = [o.partition("=")[2].strip() for o in overrides if o.lstrip("+").startswith("experiment=")]
    values = (option_values("experiment", name) for name in names)
    return any(((value or {}).get("hydra") or {}).get("mode") == "MULTIRUN" for value in values)


def spelling_hint(word: str) -> str:
    """Say how a word that stands alone was probably meant: a key without a value, or an option without its group."""
    key, colon, value = word.partition(":")
    if word in ("help", "version"):
        return f"write --{word}."
    if colon and value and key.strip() in (*GROUPS, "experiment", *known_keys()):
        return f"keys and values are joined by =, so write {key.strip()}={value.strip()}."
    if homes := [
        group for group in (*GROUPS, "experiment") if canonical_option_of_group(group, word) in option_names(group)
    ]:
        return f"write {homes[0]}={canonical_option_of_group(homes[0], word)}."
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


def canonical_option_of_group(group: str, word: str) -> str:
    """Return the option that a word names in a group."""
    return canonical_option(group, word) if group in ALIASES else word


def typed_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys that were typed: what may tell a single run from the others beside it.

    >>> typed_keys(["init=zeros", "+model.norm=batch"])
    ['init', 'model.norm']
    """
    return [override.lstrip("+~").partition("=")[0] for override in overrides]
