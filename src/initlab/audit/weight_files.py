"""Reading files of weights: tensors alone are read, and what else a file holds is named in one line."""

import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from initlab.errors import UserError

SAFE_SINCE = "2.10"
"""The first torch whose `torch.load(weights_only=True)` has no known way to run code from a file; 2.6 mended one way,
2.10 the next."""

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the state_dict among other things."""

NON_WEIGHT_KEYS = ("optim", "sched", "scaler", "loops", "callbacks", "rng", "args", "hparams", "hyper", "config")
"""How keys begin under which checkpoints keep tensors that are no weights."""

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
    _check_file_size(path)
    return extract_state_dict(
        _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch_file(path), str(path)
    )


def _check_file_size(path: Path) -> None:
    # A file may be nearly all holes, and ask for more than the disk holds.
    size, memory = path.stat().st_size, memory_size()
    if size > memory:
        gib = [f"{number / 2**30:.1f} GiB" for number in (size, memory)]
        raise UserError(f"{path} has {gib[0]} and this machine has {gib[1]} of memory: save a part of it by itself.")


def memory_size() -> float:
    """Return the bytes of memory that this machine has, where the system tells."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # whatever is in the file
        raise UserError(
            f"{path} cannot be read as safetensors ({_first_line(error)}): was it written completely?"
        ) from error


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
    except Exception as error:  # whatever is in the file
        if isinstance(error, pickle.UnpicklingError) and (names := _refused_globals(path, error)):
            raise UserError(f"{path} holds more than tensors ({names}): {SAFETENSORS_REMEDY}.") from error
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive, which holds code: {SAFETENSORS_REMEDY}.") from error
        raise UserError(
            f"{path} cannot be read as a saved state_dict ({_first_line(error)}): {SAFETENSORS_REMEDY}, or with torch.save."
        ) from error


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
    # torch's own advice fills ten lines, with escape codes, and begins with weights_only=False.
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of the old format, or one that is damaged
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    shown = [re.sub(r"[^\w.]", "?", name) for name in sorted(set(names))]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    _, mark, own = text.partition("WeightsUnpickler error:")  # torch's own advice comes before it
    lines = (own if mark else text).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def extract_state_dict(found: object, what: str) -> dict[str, Tensor]:
    """Return the state_dict that a checkpoint is or holds, at whatever depth it holds it.

    Raises:
        UserError: it holds none or several, a tensor without a name, or one without values.

    >>> list(extract_state_dict({"epoch": 3, "state_dict": {"w": torch.zeros(1)}}, "it"))
    ['w']
    >>> list(extract_state_dict({"generator": {"w": torch.zeros(1)}, "optimizer": {"m": torch.zeros(1)}}, "it"))
    ['w']
    """
    if isinstance(found, Mapping) and not found:
        raise UserError(f"{what} holds no tensors: save module.state_dict() of a module with parameters.")
    values = {
        name: t for name, value in _find_state_dict(found, what).items() for name, t in _named_tensors(str(name), value)
    }
    for name, tensor in values.items():
        if not all(name.split(".")):
            raise UserError(
                f"{what} holds a tensor named {name!r}, and every part of a parameter's name has a letter at least: "
                "give it the name that its module has for it."
            )
        if tensor.is_nested:
            raise UserError(f"{what}: {name} is a nested tensor, several in one: save them one by one.")
        if tensor.is_meta:
            raise UserError(f"{what}: {name} is on the meta device and has no values: save it with its values.")
    return _strip_wrappers(values)


def _named_tensors(name: str, value: object) -> list[tuple[str, Tensor]]:
    # Quantized layers keep a tuple of weight and bias under one name.
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, (tuple, list)):
        return [(f"{name}.{k}", each) for k, each in enumerate(value) if isinstance(each, Tensor)]
    return []


def _find_state_dict(found: object, what: str) -> Mapping[object, object]:
    if isinstance(found, Mapping):
        for key in STATE_DICT_KEYS:
            if isinstance(found.get(key), Mapping) and (inner := _candidates(found[key], (key,))):
                return _single_state_dict(inner, what, found)
        if inner := _candidates(found, ()):
            return _single_state_dict(inner, what, found)
    kind = f"the keys {_keys_text(found)}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
    raise UserError(f"{what} holds no state_dict ({kind}): save module.state_dict().")


def _candidates(found: Mapping[object, object], place: tuple[str, ...]) -> list[tuple[str, Mapping[object, object]]]:
    """Return the innermost mappings in `found` that hold tensors, with their places: a state_dict holds no mappings."""
    inner = []
    for key, value in found.items():
        other = str(key).lower().startswith(NON_WEIGHT_KEYS) or str(key).endswith("_extra_state")
        if isinstance(value, Mapping) and len(place) < MAX_DEPTH and not other:
            inner += _candidates(value, (*place, str(key)))
    if not inner and any(_named_tensors("", value) for value in found.values()):
        return [(".".join(place), found)]
    return inner


def _single_state_dict(
    found: list[tuple[str, Mapping[object, object]]], what: str, whole: Mapping[object, object]
) -> Mapping[object, object]:
    if len(found) == 1:
        return found[0][1]
    places = dict(found)
    for key in STATE_DICT_KEYS:
        if key in places:
            return places[key]
    raise UserError(
        f"{what} holds several state_dicts ({_keys_text(places)}; its keys are {_keys_text(whole)}): save the one that is meant "
        "by itself, as safetensors."
    )


def _keys_text(found: Mapping[object, object] | Mapping[str, object]) -> str:
    shown = [repr(str(key))[1:-1][:40] for key in found]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "none"


def _strip_wrappers(values: dict[str, Tensor]) -> dict[str, Tensor]:
    values = {".".join(part for part in name.split(".") if part != "_orig_mod"): t for name, t in values.items()}
    while values and all(name.startswith("module.") for name in values):
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    return values
