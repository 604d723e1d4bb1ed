"""Checks of a run's row: which kinds of values a summary and a configuration may hold."""

import json
from collections.abc import Mapping
from typing import Any

from initlab.records.columns import FINAL_METRICS, OPTIONS, flatten
from initlab.records.serialization import to_plain
from initlab.system.safe_reading import MAX_INTEGER, Unreadable, abbreviate

STATUSES = ("completed", "diverged", "failed", "skipped")
RESULT_COLUMNS = ("status", "problem", *FINAL_METRICS, "seconds", "steps", "first_bad_step", "first_bad_layer", "hash")
"""Columns of results that every frame of runs has; no configuration can define them."""

READER_COLUMNS = ("path", "problem")
"""Columns that the reader fills: no summary can define them."""

_FLOAT_KEYS = (*FINAL_METRICS, "seconds", "trainable_depth")
_INTEGER_KEYS = ("steps", "first_bad_step")
_MAX_VALUES = {"depth": 2**31, "seed": MAX_INTEGER}
_TEXT_KEYS = ("first_bad_layer", "hash", "fingerprint", "reason", "error")
_SCALAR_TYPES = (str, int, float, bool, type(None))
_MAX_KEYS = 1000  # keys of one file
_MAX_KEY_LENGTH = 200  # characters of a key


def result_cells(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Check a summary (without its `config`) and return its plain values.

    Raises:
        Unreadable: a value is of another kind than it must be, or there are too many.

    >>> result_cells({"status": "completed", "steps": 3, "environment": {"torch": "2"}})
    {'status': 'completed', 'steps': 3}
    """
    if summary.get("status") not in STATUSES:
        raise Unreadable(f"its status is not one of {', '.join(STATUSES)}")
    _check_names(summary)
    found = {key: value for key, value in summary.items() if not isinstance(value, (dict, list))}
    if own := sorted(summary.keys() & {*READER_COLUMNS, *OPTIONS}):
        raise Unreadable(f"it defines {own[0]}, which is no result")
    found |= {key: read_number(summary, key) for key in _FLOAT_KEYS if key in summary}
    found |= {key: read_count(summary, key) for key in _INTEGER_KEYS if key in summary}
    for key in _TEXT_KEYS:
        if not isinstance(summary.get(key), (str, type(None))):
            raise Unreadable(f"its {key} is no text ({abbreviate(summary[key])})")
    if not isinstance(summary.get("trained"), (bool, type(None))):
        raise Unreadable(f"its trained is neither true nor false ({abbreviate(summary['trained'])})")
    return found


def config_cells(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys of a configuration that every run has, and return it flat; lists become JSON.

    Raises:
        Unreadable: a value is of another kind than it must be, or there are too many.

    >>> config_cells({"init": {"name": "zeros"}, "depth": 2, "width": [8, 4]})
    {'init': 'zeros', 'depth': 2, 'width': '[8, 4]'}
    """
    flat = flatten(config)
    _check_names(flat)
    if taken := sorted(flat.keys() & {*RESULT_COLUMNS, *READER_COLUMNS}):
        raise Unreadable(f"it defines {taken[0]}, which is a result")
    for key in OPTIONS:
        if not isinstance(flat.get(key), (str, type(None))):
            raise Unreadable(f"its {key} is no name ({abbreviate(flat[key])})")
    flat |= {key: read_count(flat, key, most) for key, most in _MAX_VALUES.items() if key in flat}
    read_number(flat, "optim.lr")  # checked alone: it is shown as it was typed
    return {key: value if type(value) in _SCALAR_TYPES else _cell(to_plain(value)) for key, value in flat.items()}


def read_number(values: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a mapping as float64, None where it is missing or null.

    Raises:
        Unreadable: it is no number.

    >>> read_number({"loss": 3}, "loss")
    3.0
    """
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unreadable(f"its {key} is no number ({abbreviate(value)})")
    return float(value)


def read_count(values: Mapping[str, Any], key: str, most: int = 2**53) -> int | None:
    """Return a whole number from 0 to `most` of a mapping, None where it is missing or null.

    Raises:
        Unreadable: it is no such number.

    >>> read_count({"steps": 3.0}, "steps"), read_count({}, "steps")
    (3, None)
    >>> read_count({"steps": 1.5}, "steps")
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: its steps is no whole number from 0 (1.5)
    """
    number = read_number(values, key)
    if number is None or number != number:
        return None
    if not (number.is_integer() and 0 <= int(values[key]) <= most):
        raise Unreadable(
            f"its {key} is no whole number from 0{'' if number < most else f' to {most}'} ({abbreviate(values[key])})"
        )
    return int(values[key])


def _check_names(values: Mapping[str, Any]) -> None:
    if len(values) > _MAX_KEYS:
        raise Unreadable(f"it holds {len(values):,} keys, more than the {_MAX_KEYS:,} that are read")
    for key in values:
        if not isinstance(key, str) or len(key) > _MAX_KEY_LENGTH:
            raise Unreadable(f"it holds a key of {len(str(key))} characters ({abbreviate(key)})")


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
