"""Configurations and summaries as text: plain values only, and numbers that JSON does not know spelled out."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from initlab.system.safe_reading import load_bounded_json, load_bounded_yaml, require_mapping
from initlab.system.yaml_text import dump_yaml

_NONFINITE_TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_plain(value: Any) -> Any:
    """Return nothing but dicts, lists, str, int, float, bool and None.

    >>> to_plain({"lr": np.float32(0.5), "width": (128, 64)})
    {'lr': 0.5, 'width': [128, 64]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(member) for member in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return to_plain(value.tolist())
    if value is None or type(value) in (int, float, bool):
        return value
    text = str(value)
    return text if text.isascii() else encode_text(text).decode()


def to_yaml(value: Mapping[str, Any]) -> bytes:
    """Return YAML with the keys in their order."""
    return encode_text(dump_yaml(to_plain(value)))


def encode_text(text: str) -> bytes:
    """Return UTF-8, whatever the machine's own encoding is; half a character (of a file's name) is written `\\udcff`.

    >>> encode_text("é"), encode_text("\\udcff")
    (b'\\xc3\\xa9', b'\\\\udcff')
    """
    return text.encode("utf-8", "backslashreplace")


def from_yaml(data: bytes) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ValueError: it is no mapping, or not one that `load_bounded_yaml` reads.
    """
    return require_mapping(load_bounded_yaml(data))


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return valid JSON: non-finite numbers become the texts "NaN", "Infinity" and "-Infinity".

    >>> to_json({"loss": float("inf")})
    b'{\\n "loss": "Infinity"\\n}'
    """
    return encode_text(json.dumps(_spell_nonfinite(to_plain(value)), indent=1, allow_nan=False, ensure_ascii=False))


def from_json(data: bytes) -> dict[str, Any]:
    """Read what `to_json` wrote, those three texts as the numbers they stand for.

    Raises:
        ValueError: it is no mapping, or not one that `load_bounded_json` reads.

    >>> from_json(to_json({"loss": float("inf")}))
    {'loss': inf}
    """
    restored: dict[str, Any] = _restore_nonfinite(require_mapping(load_bounded_json(data)))
    return restored


def _spell_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell_nonfinite(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_spell_nonfinite(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _restore_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restore_nonfinite(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_restore_nonfinite(member) for member in value]
    return _NONFINITE_TEXTS.get(value, value) if isinstance(value, str) else value
