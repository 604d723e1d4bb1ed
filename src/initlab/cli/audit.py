"""The audit from the command line: a target that is imported or read, rules from a file, an exit code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from initlab.audit.engine import audit
from initlab.audit.formats import as_json as json_of
from initlab.audit.formats import as_junit, as_text, passed
from initlab.errors import UserError
from initlab.initialize import Spec
from initlab.inspection.exceptions import call_user_code, raise_internal_error
from initlab.system.escape import print
from initlab.system.imports import describe_exception, import_torchvision, load_target
from initlab.system.safe_reading import error_reason, read_yaml_file
from initlab.system.yaml_text import load_yaml


def run_audit(
    target: str,
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
    """Audit what a command line names, print the result, and return the exit code: 1 where a promise is broken.

    It is 1 as well where nothing was checked.
    """
    if (init is None) == (rules is None):
        raise UserError("give either --init SCHEME or --rules FILE: what was promised.")
    promise: Spec | Mapping[str, Spec] = str(init) if rules is None else read_rules(Path(rules))
    rows = audit_named_target(
        target,
        promise,
        module=module,
        keywords=arg or (),
        parameters=parse_arguments(key or (), "--set") | ({} if mode is None else {"mode": mode}),
        roles=_grouped_options(role or (), "--role"),
        kinds=_grouped_options(kind or (), "--kind", last=True),
        gain=_number_or_word(gain),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        **arguments,
    )
    if junit is not None:
        try:
            Path(junit).write_text(as_junit(rows, f"initlab audit {target}"), encoding="utf-8")
        except OSError as error:
            why = error.strerror or error
            raise UserError(
                f"--junit {junit} cannot be written ({why}): give a file in a directory that exists and is yours."
            ) from error
    print(json_of(rows) if as_json else as_text(rows, every))
    return 0 if passed(rows) else 1


def _number_or_word(text: str) -> float | str:
    try:
        found = load_yaml(text)
    except ValueError:
        return text
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else text


def _grouped_options(texts: Sequence[str], option: str, last: bool = False) -> dict[str, Any]:
    # ROLE=GLOB may come several times for one role; a glob has one kind, and is split from it at the last "=".
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.rpartition("=") if last else text.partition("=")
        if not (key and equals and value):
            raise UserError(f"{option} {text} must be {'GLOB=KIND' if last else 'ROLE=GLOB'}.")
        if last:
            found[key] = value
        else:
            found.setdefault(key, []).append(value)
    return found


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
        target: `package.module:callable` (called without arguments but `keywords`; a module or a state_dict is taken
            as it is), or the path of a .safetensors file or a saved state_dict.
        promise: as in `audit`.
        module: `package.module:callable` of the module that a file's values belong to.
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
    """Return what `package.module:callable` builds, or the object itself where it is a module or a mapping."""
    if target.startswith("torchvision."):
        import_torchvision()
    found = load_target(target, "audit")
    if isinstance(found, (nn.Module, Mapping)) or not callable(found):
        return found
    given = parse_arguments(keywords, "--arg")
    try:
        return call_user_code(found, **given)
    except Exception as error:  # whatever the user's own code raises
        raise_internal_error(error, target)
        raise UserError(
            f"{target} failed when it was called ({describe_exception(error)}): give it --arg key=value."
        ) from error


def parse_arguments(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return {"key": value} of "key=value" texts, the values read as YAML.

    >>> parse_arguments(["num_classes=10", "name=he_normal"], "--arg")
    {'num_classes': 10, 'name': 'he_normal'}
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"{option} {text} must be key=value.")
        try:
            found[key] = load_yaml(value)
        except ValueError as error:
            raise UserError(f"{option} {text}: the value cannot be read ({error}).") from error
    return found


def read_rules(path: Path) -> dict[str, Spec]:
    """Return the rules of a YAML or JSON file: {glob: scheme} or {glob: {name: scheme, key: value}}, in order.

    Raises:
        UserError: no such file, no YAML, or no mapping.
    """
    try:
        found = read_yaml_file(path, given=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--rules {path} cannot be read ({error_reason(error)}): it must map globs to schemes in YAML."
        ) from error
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"--rules {path} must map globs to schemes, such as '*.head.weight': zeros.")
    return {str(glob): _rule_spec(path, str(glob), spec) for glob, spec in found.items()}


def _rule_spec(path: Path, glob: str, spec: Any) -> Spec:
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        return spec["name"], {str(key): value for key, value in spec.items() if key != "name"}
    raise UserError(f"--rules {path}: {glob} must be a scheme's name, or a mapping with name: and the scheme's keys.")
