"""Whether an exception comes from initlab's own code or from the module that initlab runs."""

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from initlab.errors import InternalError, UserError

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "numpy", "scipy", "pandas", "safetensors")
"""Packages that both initlab and modules call: what they raise counts as raised by their caller."""

LIBRARY_DIRECTORIES = (str(Path(torch.__file__).parent), str(Path(numpy.__file__).parent), sysconfig.get_path("stdlib"))
SITE_DIRECTORIES = ("site-packages", "dist-packages")
MODELS = PACKAGE / "models"
"""initlab's own modules: what their `forward` raises is treated as that of a user's module."""

USER_ERRORS = (UserError, MemoryError, torch.OutOfMemoryError, OSError)


def call_user_code(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a user's code (a module, a loss, a function inside a forward pass): what it raises counts as the user's.

    >>> call_user_code(max, 1, 2)
    2
    """
    return function(*args, **kwargs)


def initlab_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the line of initlab that raised an exception, or None where code that initlab runs raised it.

    The innermost frame outside torch and other libraries decides. A layer of torch, or its autograd, that initlab was
    running counts as part of the user's module.

    >>> try:
    ...     call_user_code(torch.nn.Linear(2, 2), torch.zeros(3))
    ... except RuntimeError as error:
    ...     print(initlab_frame(error))
    None
    """
    if isinstance(error, USER_ERRORS):
        return None
    running = False
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            if running or (path == Path(__file__) and frame.name == call_user_code.__name__):
                return None
            if not path.is_relative_to(MODELS):
                return frame
        elif _is_library(path):
            running = running or "/torch/nn/modules/" in path.as_posix() or "/torch/autograd/" in path.as_posix()
        else:
            return None
    return None


def _is_library(path: Path) -> bool:
    # Installed packages may lie below the standard library; a model of timm's is still the user's module.
    site = next((k for k, part in enumerate(path.parts) if part in SITE_DIRECTORIES), None)
    if site is not None:
        return path.parts[site + 1] in LIBRARIES
    return str(path).startswith((*LIBRARY_DIRECTORIES, "<frozen", "<string>", "<__array"))


def raise_internal_error(error: BaseException, name: str) -> None:
    """Raise `InternalError` where initlab's own code raised an exception while it inspected a module.

    Args:
        error: the exception.
        name: what the message calls the module.

    Raises:
        InternalError: initlab's own code raised `error`.
    """
    frame = initlab_frame(error)
    if frame is not None:
        where = f"{Path(frame.filename).relative_to(PACKAGE.parent)}, line {frame.lineno}"
        raise InternalError(
            f"initlab failed in its own code ({type(error).__name__} in {where}), {name} did not: this is a bug of "
            "initlab. Please report it with the lines above."
        ) from error
