"""Configurations and summaries as text: plain values only; numbers that JSON lacks are spelled out."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from initlab.system.safe_reading import load_bounded_json, load_bounded_yaml, require_mapping
from initlab.system.yaml_text import dump_yaml

_NONFINITE_TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_plain(value: Any) -> Any:
    """Return a value as dicts, lists, str, int, float, bool and None; other objects become texts.

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
    """Return UTF-8; half a character, which a file's name may hold, is written `\\udcff`.

    >>> encode_text("é"), encode_text("\\udcff")
    (b'\\xc3\\xa9', b'\\\\udcff')
    """
    return text.encode("utf-8", "backslashreplace")


def from_yaml(data: bytes) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ValueError: it is no mapping, or `load_bounded_yaml` refuses it.
    """
    return require_mapping(load_bounded_yaml(data))


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return valid JSON: non-finite numbers become the texts "NaN", "Infinity" and "-Infinity".

    >>> to_json({"loss": float("inf")})
    b'{\\n "loss": "Infinity"\\n}'
    """
    spelled = _map_leaves(_spell_nonfinite, to_plain(value))
    return encode_text(json.dumps(spelled, indent=1, allow_nan=False, ensure_ascii=False))


def from_json(data: bytes) -> dict[str, Any]:
    """Read what `to_json` wrote; the three texts become numbers again.

    Raises:
        ValueError: it is no mapping, or `load_bounded_json` refuses it.

    >>> from_json(to_json({"loss": float("inf")}))
    {'loss': inf}
    """
    restored: dict[str, Any] = _map_leaves(
        lambda leaf: _NONFINITE_TEXTS.get(leaf, leaf), require_mapping(load_bounded_json(data))
    )
    return restored


def _map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map_leaves(change, member) for key, member in value.items()}
    if isinstance(value, list):
        return [_map_leaves(change, member) for member in value]
    return change(value)


def _spell_nonfinite(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value
