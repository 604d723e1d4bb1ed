"""Read files of weights: only tensors are read, and an error names other content in one line."""

import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from initlab.errors import UserError
from initlab.inspection.parameters import plain_name

SAFE_SINCE = "2.10"
"""The first torch whose `torch.load(weights_only=True)` has no known way to run code from a file; 2.6 closed one way,
2.10 the next."""

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints hold the state_dict among other things."""

NON_WEIGHT_KEYS = ("optim", "sched", "scaler", "loops", "callbacks", "rng", "args", "hparams", "hyper", "config")
"""Starts of the keys under which checkpoints hold tensors other than weights."""

MAX_DEPTH = 4
"""Levels of nesting that are searched for a state_dict."""

SAFETENSORS_REMEDY = "save its state_dict with safetensors.torch.save_file"


def load_weight_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of one that torch.save wrote (only tensors are unpickled).

    Raises:
        UserError: there is no such file, it holds no state_dict, or this torch cannot read its format safely.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give package.module:callable, a .safetensors file or a saved state_dict.")
    # A sparse file may be larger than the disk.
    size, memory = path.stat().st_size, memory_size()
    if size > memory:
        gib = [f"{number / 2**30:.1f} GiB" for number in (size, memory)]
        raise UserError(f"{path} has {gib[0]} and this machine has {gib[1]} of memory: save a part of it by itself.")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch_file(path)
    return extract_state_dict(content, str(path))


def memory_size() -> float:
    """Return the bytes of memory of this machine, infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # anything may be in the file
        reason = _first_line(error)
        raise UserError(f"{path} cannot be read as safetensors ({reason}): was it written completely?") from error


def _load_torch_file(path: Path) -> object:
    if TorchVersion(torch.__version__) < SAFE_SINCE:
        raise UserError(
            f"{path} is a pickle, and torch {torch.__version__} can be made to run code by one: {SAFETENSORS_REMEDY}, "
            f"or use torch {SAFE_SINCE} or newer."
        )
    _check_uncompressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to the programmer who calls torch.load
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything may be in the file
        reason = f"cannot be read as a saved state_dict ({_first_line(error)})"
        remedy = f"{SAFETENSORS_REMEDY}, or with torch.save"
        if isinstance(error, pickle.UnpicklingError) and (names := _refused_globals(path, error)):
            reason, remedy = f"holds more than tensors ({names})", SAFETENSORS_REMEDY
        elif "TorchScript" in str(error):
            reason, remedy = "is a TorchScript archive, which holds code", SAFETENSORS_REMEDY
        raise UserError(f"{path} {reason}: {remedy}.") from error


def _check_uncompressed(path: Path) -> None:
    # torch.save compresses nothing; a compressed file may unpack to a thousand times its size.
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged archive ({_first_line(error)}): was it written completely?") from error
    if unpacked > path.stat().st_size:
        raise UserError(f"{path} is a compressed archive, which torch.save never writes: {SAFETENSORS_REMEDY}.")


def _refused_globals(path: Path, error: Exception) -> str:
    # torch's own advice fills ten lines, with escape codes, and starts with weights_only=False.
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of the old format, or a damaged one
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return _list_names([re.sub(r"[^\w.]", "?", name) for name in sorted(set(names))], 3)


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    lines = text.split("WeightsUnpickler error:")[-1].strip().splitlines()  # torch's own advice comes before it
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def extract_state_dict(content: object, source: str) -> dict[str, Tensor]:
    """Return the state_dict that a checkpoint is or holds, at any depth.

    Args:
        content: what a file or the caller holds.
        source: what the messages call it.

    Raises:
        UserError: it holds none or several, a tensor without a name, or one without values.

    >>> list(extract_state_dict({"epoch": 3, "state_dict": {"w": torch.zeros(1)}}, "it"))
    ['w']
    >>> list(extract_state_dict({"generator": {"w": torch.zeros(1)}, "optimizer": {"m": torch.zeros(1)}}, "it"))
    ['w']
    """
    if isinstance(content, Mapping) and not content:
        raise UserError(f"{source} holds no tensors: save module.state_dict() of a module with parameters.")
    state_dict = _find_state_dict(content, source)
    values = {name: t for key, value in state_dict.items() for name, t in _named_tensors(str(key), value)}
    for name, tensor in values.items():
        if not all(name.split(".")):
            raise UserError(
                f"{source} holds a tensor named {name!r}, and every part of a parameter's name has a letter at least: "
                "give it the name that its module has for it."
            )
        if tensor.is_nested:
            raise UserError(f"{source}: {name} is a nested tensor, several in one: save them one by one.")
        if tensor.is_meta:
            raise UserError(f"{source}: {name} is on the meta device and has no values: save it with its values.")
    values = {plain_name(name): tensor for name, tensor in values.items()}
    while values and all(name.startswith("module.") for name in values):
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    return values


def _named_tensors(name: str, value: object) -> list[tuple[str, Tensor]]:
    # Quantized layers hold a tuple of weight and bias under one name.
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, (tuple, list)):
        return [(f"{name}.{k}", each) for k, each in enumerate(value) if isinstance(each, Tensor)]
    return []


def _find_state_dict(content: object, source: str) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds no state_dict (a {type(content).__name__}): save module.state_dict().")
    candidates: list[tuple[str, Mapping[Any, Any]]] = []
    for key in STATE_DICT_KEYS:
        if isinstance(content.get(key), Mapping) and not candidates:
            candidates = _candidates(content[key], (key,))
    places = dict(candidates or _candidates(content, ()))
    if not places:
        raise UserError(f"{source} holds no state_dict (the keys {_keys_text(content)}): save module.state_dict().")
    if len(places) == 1:
        return next(iter(places.values()))
    for key in STATE_DICT_KEYS:
        if key in places:
            return places[key]
    raise UserError(
        f"{source} holds several state_dicts ({_keys_text(places)}; its keys are {_keys_text(content)}): "
        "save the one that is meant by itself, as safetensors."
    )


def _candidates(mapping: Mapping[Any, Any], place: tuple[str, ...]) -> list[tuple[str, Mapping[Any, Any]]]:
    # The innermost mappings that hold tensors, with their places: a state_dict holds no mappings.
    inner = []
    for key, value in mapping.items():
        other = str(key).lower().startswith(NON_WEIGHT_KEYS) or str(key).endswith("_extra_state")
        if isinstance(value, Mapping) and len(place) < MAX_DEPTH and not other:
            inner += _candidates(value, (*place, str(key)))
    if not inner and any(_named_tensors("", value) for value in mapping.values()):
        return [(".".join(place), mapping)]
    return inner


def _keys_text(mapping: Mapping[Any, Any]) -> str:
    return _list_names([repr(str(key))[1:-1][:40] for key in mapping], 8) or "none"


def _list_names(names: list[str], count: int) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
