"""Numbers as compact text for the page: typed arrays in base64, JSON that no HTML parser can read as markup."""

import base64
import json
from typing import Any

import numpy as np

_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
_LEVELS = 4095


def encode_floats(values: Any) -> str:
    """Return float32 numbers as base64, NaN and infinities as they are.

    >>> encode_floats([0.0, 1.0])
    'AAAAAAAAgD8='
    """
    with np.errstate(over="ignore"):
        return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def encode_integers(values: Any) -> str:
    """Return whole numbers below 2³² as base64."""
    return base64.b64encode(np.asarray(values, dtype="<u4").tobytes()).decode()


def encode_counts(counts: np.ndarray) -> str:
    """Return counts [..., 64] as two characters each: √(count/largest) in 4,095 steps, so that tails keep their shape.

    >>> encode_counts(np.array([0, 1, 4]))
    'AAgA//'
    """
    largest = np.maximum(counts.max(axis=-1, keepdims=True), 1)
    levels = np.rint(_LEVELS * np.sqrt(counts / largest)).astype(np.int64)
    return np.stack([_ALPHABET[levels >> 6], _ALPHABET[levels & 63]], axis=-1).tobytes().decode()


def json_numbers(values: Any) -> list[float | int | None]:
    """Return a column for JSON: six digits, None for what is not finite."""
    return [_json_number(value) for value in values]


def _json_number(value: Any) -> float | int | None:
    if value is None or value != value:
        return None
    value = float(value)
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")


def script_json(value: Any) -> str:
    r"""Return JSON that can stand inside a script element: no <, > or &, nothing but ASCII.

    >>> script_json({"name": "</script>é"})
    '{"name":"\\u003c/script\\u003e\\u00e9"}'
    """
    found = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return found.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
