"""Values that come without their module: a state_dict, or a file of one."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import UserError

NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the state_dict among other things."""


def load(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of one that torch.save wrote (only tensors are unpickled).

    Raises:
        UserError: there is no such file, or it holds no state_dict.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give package.module:callable, a .safetensors file or a saved state_dict.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({error}): was it written completely?") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is in the file
        first = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a saved state_dict ({first}): save module.state_dict() with torch.save, "
            "or as safetensors."
        ) from error
    return tensors_of(found, str(path))


def tensors_of(found: object, what: str) -> dict[str, Tensor]:
    """Return the state_dict that a checkpoint is or holds.

    >>> list(tensors_of({"epoch": 3, "state_dict": {"w": torch.zeros(1)}}, "it"))
    ['w']
    """
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{what} holds no state_dict: save module.state_dict().")
    return _unwrapped({str(name): value for name, value in found.items() if isinstance(value, Tensor)})


def _unwrapped(values: dict[str, Tensor]) -> dict[str, Tensor]:
    values = {".".join(part for part in name.split(".") if part != "_orig_mod"): t for name, t in values.items()}
    while values and all(name.startswith("module.") for name in values):
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    return values


def with_values(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `module` that holds `values`; the module is not changed, and no weight is copied.

    Raises:
        UserError: names or shapes are not those of the module.

    >>> net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> torch.equal(with_values(net, other.state_dict()).weight, other.weight)
    True
    """
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    held = copy.deepcopy(module, dict(empty))
    ties: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        ties.setdefault(id(tensor), []).append(name)
    given = dict(values)
    for names in ties.values():  # files keep a tied weight once
        if known := [name for name in names if name in given]:
            given |= {name: given[known[0]] for name in names if name not in given}
    try:
        held.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        raise UserError(
            f"the values are not those of the module ({lines[0] if lines else error}): give the module that they were "
            "saved from, or none."
        ) from error
    return held


def skeleton(values: Mapping[str, Tensor]) -> nn.Module:
    """Return a module that holds these values, with layers guessed from names and shapes.

    2-d weights are dense (embeddings where the name says so), 3- to 5-d ones convolutions of one group, 1-d ones norm
    scales: bare tensors tell neither groups nor the order of a transposed convolution with as many inputs as outputs.

    >>> net = skeleton({"a.0.weight": torch.zeros(3, 2), "a.0.bias": torch.zeros(3)})
    >>> [(name, type(part).__name__) for name, part in net.named_modules() if name]
    [('a', 'Module'), ('a.0', 'Linear')]
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _effective(values).items():
        prefix, _, own = name.rpartition(".")
        groups.setdefault(prefix, {})[own] = tensor
    root = _layer("", groups.pop("")) if "" in groups else nn.Module()
    for prefix, tensors in groups.items():
        place = root
        *path, last = prefix.split(".")
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        layer = _layer(last, tensors)
        for child, found in (place._modules.get(last) or nn.Module()).named_children():
            layer.add_module(child, found)
        place.add_module(last, layer)
    return root


def _effective(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # weight_norm's two tensors, in the new and in the old form, become the weight that they stand for.
    found: dict[str, Tensor] = {}
    for name, tensor in values.items():
        for magnitude, direction in (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            ("weight_g", "weight_v"),
        ):
            prefix = name.removesuffix(magnitude)
            if prefix != name and f"{prefix}{direction}" in values:
                found[f"{prefix}weight"] = torch._weight_norm(values[f"{prefix}{direction}"], tensor, 0)
                break
            if name.endswith(direction) and f"{name.removesuffix(direction)}{magnitude}" in values:
                break
        else:
            found[name] = tensor
    return found


def _layer(called: str, own: Mapping[str, Tensor]) -> nn.Module:
    layer = _guess(called.lower(), own)
    layer._parameters.clear()
    layer._buffers.clear()
    for child in [*layer._modules]:
        del layer._modules[child]
    for name, tensor in own.items():
        if name.startswith(("running_", "num_batches")) or not (tensor.is_floating_point() or tensor.is_complex()):
            layer.register_buffer(name, tensor)
        else:
            layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return layer


def _guess(called: str, own: Mapping[str, Tensor]) -> nn.Module:
    hidden = next((t for name, t in own.items() if name.startswith("weight_hh")), None)
    if hidden is not None and hidden.shape[0] // hidden.shape[1] in _RECURRENT:
        return _RECURRENT[hidden.shape[0] // hidden.shape[1]](1, hidden.shape[1], device="meta")
    if "in_proj_weight" in own or "q_proj_weight" in own:
        return nn.MultiheadAttention(1, 1, device="meta")
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or not (weight.is_floating_point() or weight.is_complex()):
        return nn.Module()
    if "running_mean" in own:
        return nn.BatchNorm1d(weight.numel(), device="meta")
    if weight.dim() == 1:
        return nn.PReLU(device="meta") if weight.numel() == 1 and bias is None else nn.LayerNorm(weight.numel())
    if weight.dim() == 2:
        table = bias is None and any(word in called for word in ("embed", "emb", "wte", "wpe"))
        return nn.Embedding(1, 1, device="meta") if table else nn.Linear(1, 1, device="meta")
    if weight.dim() in _CONVOLUTIONS:
        turned = bias is not None and weight.shape[0] != bias.numel() == weight.shape[1]
        plain, transposed = _CONVOLUTIONS[weight.dim()]
        return (transposed if turned else plain)(1, 1, 1, device="meta")
    return nn.Module()


_RECURRENT: dict[int, Any] = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}
_CONVOLUTIONS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    3: (nn.Conv1d, nn.ConvTranspose1d),
    4: (nn.Conv2d, nn.ConvTranspose2d),
    5: (nn.Conv3d, nn.ConvTranspose3d),
}
