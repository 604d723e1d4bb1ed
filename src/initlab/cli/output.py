"""JSON and CSV that a verb writes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from initlab.errors import UserError
from initlab.system.escape import json_text


def output_json(value: Any) -> str:
    """Write JSON; what is no number there is null, infinities are their names.

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


def write_csv(frame: pd.DataFrame, csv: str | None) -> None:
    """Write a frame where somebody wants it.

    Raises:
        UserError: the file cannot be written.
    """
    if csv is None:
        return
    try:
        frame.to_csv(Path(csv), index=False, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"--csv {csv} cannot be written ({error.strerror or error}).") from error
