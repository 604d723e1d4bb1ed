"""JSON, CSV and consoles of the verbs."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.errors import UserError
from initlab.system.escape import json_text

if TYPE_CHECKING:
    import pandas as pd

    from initlab.system.terminal import SafeConsole


def output_json(value: Any) -> str:
    """Return JSON in which NaN is null, and an infinity is the text "inf" or "-inf".

    >>> output_json({"a": float("nan"), "b": [float("inf"), 1.5]})
    '{\\n  "a": null,\\n  "b": [\\n    "inf",\\n    1.5\\n  ]\\n}'
    """
    return json_text(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def write_csv(frame: "pd.DataFrame", csv: str | None) -> None:
    """Write a frame to the file that `--csv` names, or nothing where it names none.

    Raises:
        UserError: the file cannot be written.
    """
    if csv is None:
        return
    try:
        frame.to_csv(Path(csv), index=False, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"--csv {csv} cannot be written ({error.strerror or error}).") from error


def output_console(width: int | None = None) -> "SafeConsole":
    """Return a console on standard output; where that is no terminal, $COLUMNS or else `width` (140) columns wide."""
    from initlab.system.terminal import FILE_WIDTH, SafeConsole

    console = SafeConsole()
    return console if console.is_terminal or "COLUMNS" in os.environ else SafeConsole(width=width or FILE_WIDTH)
