"""Imports on demand: a user's own `package.module:name`, and torchvision."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from initlab.errors import UserError, did_you_mean, working_directory


def load_target(target: Any, key: str = "target") -> Any:
    """Import the object of `package.module:name`; a module that is not installed comes from the current directory.

    Args:
        target: `"package.module:name"`; the name may be dotted (`"module:Class.method"`).
        key: configuration key for the error (`"act.target"`); for a key in `CONTRACTS` the error also names what the
            function is given and returns.

    Raises:
        UserError: the text has another form, the module or the name in it cannot be imported, or the module raises.

    >>> load_target("math:hypot")(3, 4)
    5.0
    """
    module_name, colon, name = str(target).partition(":") if target is not None else ("", "", "")
    if not (colon and module_name and name):
        raise UserError(
            f"{key}={'null' if target is None else target} names nothing to import: "
            f"give {key}=package.module:function, for a file mine.py here {key}=mine:function{describe_contract(key)}."
        )
    if module_name.endswith(".py") or "/" in module_name:
        module = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise UserError(
            f"{key}={target} names a file: a module is named without .py, with dots for slashes: {module}:{name}."
        )
    try:
        with _import_path(module_name.partition(".")[0]):
            value: Any = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise UserError(
            f"{key}={target}: cannot import module {module_name!r} ({error}); "
            f"it must be in the current directory ({working_directory()}) or be installed{describe_contract(key)}."
        ) from error
    except Exception as error:  # from the user's file
        cause = describe_exception(error)
        raise UserError(
            f"{key}={target}: {module_name!r} failed when it was imported ({cause}): correct it there."
        ) from error
    for part in name.split("."):
        if not hasattr(value, part):
            near = did_you_mean(part, [name for name in dir(value) if not name.startswith("_")])
            hint = near or _describe_shadowing(working_directory(), module_name.partition(".")[0])
            raise UserError(f"{key}={target}: {module_name!r} has no {part!r}{describe_contract(key)}.{hint}")
        value = getattr(value, part)
    return value


def describe_contract(key: str) -> str:
    """Return the end of a sentence: what the function of a key is given and returns; empty for other keys.

    >>> describe_contract("act.target")[:31], describe_contract("audit")
    ('. For act=, function(x) returns', '')
    """
    group = key.partition(".")[0]
    return f". For {group}=, {CONTRACTS[group]}" if group in CONTRACTS else ""


def target_of(function: Any, key: str) -> str:
    """Return the `module:name` by which a function or class can be imported.

    Args:
        function: or class.
        key: configuration key for the error.

    Raises:
        UserError: it cannot be imported by a name.

    >>> target_of(did_you_mean, "init")
    'initlab.errors:did_you_mean'
    """
    with suppress(AttributeError, ImportError, ValueError):
        name = f"{function.__module__}:{function.__qualname__}"
        if resolve_name(name) is function:
            return name
    raise UserError(
        f"{key} is given {function!r}, which cannot be imported by a name: "
        f"define it at the top of a module and give {key}='module:function'{describe_contract(key)}."
    )


def describe_exception(error: BaseException) -> str:
    """Return an exception of user code for a sentence: its class, its first line, its file and line.

    >>> describe_exception(KeyError("where"))
    "KeyError: 'where'"
    """
    first = str(error).splitlines()[0].rstrip(".") if str(error) else ""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {first}{where}" if first else f"{type(error).__name__}{where}"


def describe_value(value: Any) -> str:
    """Return the type of a value of user code for a sentence, and its shape if it has one.

    >>> describe_value(3), describe_value([1, 2])
    ('an int', 'a list')
    """
    kind = type(value).__name__
    shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}{shape}"


def import_torchvision() -> ModuleType:
    """Import torchvision, which only its own data sets and models need.

    Raises:
        UserError: it is missing, or was built for another torch (usually one without CUDA).

    >>> import_torchvision().__name__
    'torchvision'
    """
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        # Its compiled part did not load: "operator torchvision::nms does not exist".
        reason = str(error).splitlines()[0]
        torch_version = importlib.metadata.version("torch")
        raise UserError(
            f"torchvision cannot be imported beside this torch {torch_version} ({reason}): install torch and "
            "torchvision together from one package index; torch from PyTorch's CPU index needs torchvision from there."
        ) from error


@contextmanager
def change_to_root() -> Iterator[None]:
    """Make the root the current directory in the block, for processes that import from the directory they start in.

    The user's directory may have a `json.py` or `torch.py`.
    """
    try:
        before = os.getcwd()
    except OSError:  # it has been removed
        before = os.sep
    os.chdir(os.sep)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _import_path(package: str) -> Iterator[None]:
    # A console script has its own directory on sys.path, not the current one. That is searched for the user's modules
    # only: what is installed would import from there, too. It may have been removed after the first import.
    installed = package in sys.modules or importlib.util.find_spec(package) is not None
    if installed or (entry := str(working_directory())) in sys.path:
        yield
        return
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _describe_shadowing(directory: Path, package: str) -> str:
    """Return a sentence where an installed module hides a file of the user's, else an empty string."""
    file = f"{package}.py"
    installed = getattr(sys.modules.get(package), "__file__", None) or ""
    if not (directory / file).exists() or Path(installed).parent == directory:
        return ""
    return f" {file} in the current directory is hidden by the installed {package!r}: give the file another name."


CONTRACTS: dict[str, str] = {
    "init": "function(weight, *, fans, gain, role, generator) fills `weight`, float32 (out, in, *receptive), in place; "
    "it may leave out keywords that it does not need",
    "act": "function(x) returns a tensor of x's shape; an initlab.activations.Activation or a torch.nn.Module will do",
    "model": "function(depth, width, act, input_shape, classes) returns a torch.nn.Module; it may leave out arguments",
    "data": "function() returns ((train_x, train_y), (test_x, test_y)), arrays or tensors, or two torch Datasets "
    "(training, test); uint8 inputs are images, integer targets classes, floating ones a regression",
}
"""What user functions are given and return, by the groups that take them as `group=module:function`."""


_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_target(name: str) -> bool:
    """Return whether a name has the form `package.module:function`.

    >>> is_target("mine:half_he"), is_target("a.b:C.d"), is_target("he_normal"), is_target("mine:")
    (True, True, False, False)
    """
    return _TARGET.fullmatch(name) is not None


def option_name(option: Mapping[str, Any]) -> str:
    """Return the name of a chosen option; of the user's own, what is imported.

    >>> option_name({"name": "zeros", "gain": 1}), option_name({"name": "custom", "target": "mine:half_he"})
    ('zeros', 'mine:half_he')
    """
    own = option.get("target") if option["name"] == "custom" else None
    return str(own or option["name"])
