"""Numbers as compact text for the page: typed arrays in base64, JSON that no HTML parser can read as markup."""

import base64
import json
from typing import Any

import numpy as np

_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
_LEVELS = 4095


def encode_floats(values: Any) -> str:
    """Return numbers as float32 in base64, NaN and infinities included.

    >>> encode_floats([0.0, 1.0])
    'AAAAAAAAgD8='
    """
    with np.errstate(over="ignore"):
        return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def encode_integers(values: Any) -> str:
    """Return whole numbers from 0 to 2³² − 1 in base64."""
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
    """Return a column for JSON: six digits, None for what is not finite.

    >>> json_numbers([3.0, 1 / 3, float("inf")])
    [3, 0.333333, None]
    """
    numbers = [float("nan" if value is None else value) for value in values]
    return [
        None if not np.isfinite(x) else int(x) if x.is_integer() and abs(x) < 2**53 else float(f"{x:.6g}")
        for x in numbers
    ]


def script_json(value: Any) -> str:
    r"""Return JSON that can stand inside a script element: no <, > or &, nothing but ASCII.

    >>> script_json({"name": "</script>é"})
    '{"name":"\\u003c/script\\u003e\\u00e9"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
