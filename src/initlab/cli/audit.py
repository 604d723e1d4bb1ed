"""`initlab audit`: import or read a target, take the promise from options or a file, print the rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from initlab.audit.engine import audit
from initlab.audit.formats import as_json as audit_json
from initlab.audit.formats import as_junit, as_text, passed
from initlab.cli.arguments import call_imported, load_callable, parse_pairs
from initlab.errors import UserError
from initlab.initialize import Spec
from initlab.system.escape import print
from initlab.system.safe_reading import error_reason, read_yaml_file
from initlab.system.yaml_text import load_yaml


def run_audit(
    target: str,
    *,
    init: str | None,
    rules: str | None,
    mode: str | None,
    key: Sequence[str] | None,
    role: Sequence[str] | None,
    kind: Sequence[str] | None,
    gain: str,
    only: Sequence[str] | None,
    skip: Sequence[str] | None,
    module: str | None,
    arg: Sequence[str] | None,
    every: bool,
    as_json: bool,
    junit: str | None,
    **arguments: Any,
) -> int:
    """Audit the target, print the result, and return the exit code.

    It is 1 where a promise is broken or nothing was checked, else 0.

    Args:
        target: as in `audit_named_target`.
        init: the promised scheme; or
        rules: a file as in `read_rules`.
        mode: `init.mode` of the scheme.
        key: other keys of the scheme, "key=value".
        role: "ROLE=GLOB".
        kind: "GLOB=KIND".
        gain: a word or a number.
        only: globs of what is checked.
        skip: globs of what is not.
        module: as in `audit_named_target`.
        arg: "key=value" for the callable.
        every: print every parameter, not only those that break their promise.
        as_json: print JSON.
        junit: file that JUnit XML is written to.
        arguments: others of `audit`.

    Raises:
        UserError: the target, the promise or an option cannot be, or the JUnit file cannot be written.
    """
    if (init is None) == (rules is None):
        raise UserError("give either --init SCHEME or --rules FILE: what was promised.")
    promise: Spec | Mapping[str, Spec] = str(init) if rules is None else read_rules(Path(rules))
    roles: dict[str, list[str]] = {}
    for name, glob in _split_options(role, "--role", "ROLE=GLOB"):
        roles.setdefault(name, []).append(glob)
    rows = audit_named_target(
        target,
        promise,
        module=module,
        keywords=arg or (),
        parameters=parse_pairs(key or (), "--set") | ({} if mode is None else {"mode": mode}),
        roles=roles,
        kinds=dict(_split_options(kind, "--kind", "GLOB=KIND", at_last=True)),
        gain=_number_or_word(gain),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        **arguments,
    )
    if junit is not None:
        try:
            Path(junit).write_text(as_junit(rows, f"initlab audit {target}"), encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"--junit {junit} cannot be written ({reason}): give a file in a directory that exists and is yours."
            ) from error
    print(audit_json(rows) if as_json else as_text(rows, every))
    return 0 if passed(rows) else 1


def _number_or_word(text: str) -> float | str:
    try:
        value = load_yaml(text)
    except ValueError:
        return text
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else text


def _split_options(texts: Sequence[str] | None, option: str, form: str, at_last: bool = False) -> list[tuple[str, str]]:
    """Split each text at its first =, or at its last one, since a glob may hold =.

    Raises:
        UserError: a side is empty.
    """
    parts = [text.rpartition("=") if at_last else text.partition("=") for text in texts or ()]
    for left, equals, right in parts:
        if not (left and right):
            raise UserError(f"{option} {left}{equals}{right} must be {form}.")
    return [(left, right) for left, _, right in parts]


def audit_named_target(
    target: str,
    promise: Spec | Mapping[str, Spec],
    *,
    module: str | None = None,
    keywords: Sequence[str] = (),
    **arguments: Any,
) -> pd.DataFrame:
    """Return the audit's rows of what a command line names.

    Args:
        target: `package.module:callable`, called with `keywords` alone (a module or a state_dict is taken as it is), or
            the path of a .safetensors file or of a saved state_dict.
        promise: as in `audit`.
        module: `package.module:callable` that returns the module that a file's values belong to.
        keywords: "key=value" for the callable, the values read as YAML.
        arguments: those of `audit`.

    Raises:
        UserError: the target cannot be imported, called or read, or gives something else.
    """
    if ":" in target and not Path(target).exists():
        if module is not None:
            raise UserError(f"--module={module} belongs to a file of values, and {target} is a module: leave it out.")
        found = load_audit_target(target, keywords)
        if not isinstance(found, (nn.Module, Mapping)):
            raise UserError(f"{target} gives a {type(found).__name__}: it must give a torch.nn.Module or a state_dict.")
        return audit(found, promise, **arguments)
    owner = None if module is None else load_audit_target(module, keywords)
    if owner is not None and not isinstance(owner, nn.Module):
        raise UserError(f"--module={module} gives a {type(owner).__name__}: it must give a torch.nn.Module.")
    return audit(target, promise, module=owner, **arguments)


def load_audit_target(target: str, keywords: Sequence[str]) -> Any:
    """Return what `package.module:callable` returns, or the object itself where it is no callable."""
    found = load_callable(target, "target")
    if isinstance(found, (nn.Module, Mapping)) or not callable(found):
        return found
    return call_imported(found, target, **parse_pairs(keywords, "--arg"))


def read_rules(path: Path) -> dict[str, Spec]:
    """Return the rules of a YAML or JSON file: {glob: scheme} or {glob: {name: scheme, key: value}}, in order.

    Raises:
        UserError: the file cannot be read, or holds no such mapping.
    """
    try:
        rules = read_yaml_file(path, given=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--rules {path} cannot be read ({error_reason(error)}): it must map globs to schemes in YAML."
        ) from error
    if not isinstance(rules, Mapping) or not rules:
        raise UserError(f"--rules {path} must map globs to schemes, such as '*.head.weight': zeros.")
    return {str(glob): _rule_spec(path, str(glob), spec) for glob, spec in rules.items()}


def _rule_spec(path: Path, glob: str, spec: Any) -> Spec:
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        return spec["name"], {str(key): value for key, value in spec.items() if key != "name"}
    raise UserError(f"--rules {path}: {glob} must be a scheme's name, or a mapping with name: and the scheme's keys.")
