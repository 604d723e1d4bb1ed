"""Modules for values that come without one: a copy of the user's module, or one guessed from names and shapes."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from initlab.errors import UserError
from initlab.inspection.parametrized import compute_weight_norm
from initlab.inspection.torch_internals import own_buffers, own_modules, own_parameters

QUANTIZED_NAMES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "_packed_params")
"""Starts of the names of weights; where their numbers are whole, they are codes of a quantization."""

EMBEDDING_NAMES = ("emb", "wte", "wpe")
"""Parts of the names of layers that are embeddings."""

_RECURRENT: dict[int, Any] = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}
_CELLS: dict[int, Any] = {4: nn.LSTMCell, 3: nn.GRUCell, 1: nn.RNNCell}
_CONVOLUTIONS: dict[int, tuple[Any, Any]] = {
    3: (nn.Conv1d, nn.ConvTranspose1d),
    4: (nn.Conv2d, nn.ConvTranspose2d),
    5: (nn.Conv3d, nn.ConvTranspose3d),
}


def load_values(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `module` that holds `values`; the module does not change, and no weight is copied.

    Args:
        module: the user's module.
        values: its state_dict.

    Raises:
        UserError: names or shapes are not those of the module.

    >>> import torch
    >>> net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> torch.equal(load_values(net, other.state_dict()).weight, other.weight)
    True
    """
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    loaded = copy.deepcopy(module, dict(empty))
    ties: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        ties.setdefault(id(tensor), []).append(name)
    given = dict(values)
    for names in ties.values():  # files hold a tied weight once
        if known := [name for name in names if name in given]:
            given |= {name: given[known[0]] for name in names if name not in given}
    try:
        loaded.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        raise UserError(
            f"the values are not those of the module ({lines[0] if lines else error}): give the module that they were "
            "saved from, or none."
        ) from error
    return loaded


def module_from_values(values: Mapping[str, Tensor]) -> nn.Module:
    """Return a module that holds these values, with layers guessed from names and shapes.

    2-d weights are dense (embeddings where the name says so), 3- to 5-d ones convolutions of one group, 1-d ones norm
    scales: bare tensors tell neither groups nor the order of a transposed convolution with as many inputs as outputs.

    >>> import torch
    >>> net = module_from_values({"a.0.weight": torch.zeros(3, 2), "a.0.bias": torch.zeros(3)})
    >>> [(name, type(part).__name__) for name, part in net.named_modules() if name]
    [('a', 'Module'), ('a.0', 'Linear')]
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _merge_weight_norms(values).items():
        prefix, _, own = name.rpartition(".")
        groups.setdefault(prefix, {})[own] = tensor
    root = _make_layer("", groups.pop("", {}))
    for prefix, tensors in groups.items():
        # Written past add_module, which refuses names that a module has for something else, such as "forward".
        *path, last = prefix.split(".")
        children = own_modules(root)
        for part in path:
            children = own_modules(children.setdefault(part, nn.Module()))  # type: ignore[arg-type]
        layer = _make_layer(last, tensors)
        if (earlier := children.get(last)) is not None:
            own_modules(layer).update(own_modules(earlier))
        children[last] = layer
    return root


def _merge_weight_norms(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # weight_norm's two tensors, new and old, become the weight that is computed from them.
    merged = dict(values)
    for name, tensor in values.items():
        for magnitude, direction in (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            ("weight_g", "weight_v"),
        ):
            prefix = name.removesuffix(magnitude)
            if prefix == name or f"{prefix}{direction}" not in values or f"{prefix}weight" in values:
                continue
            weight = compute_weight_norm(values[f"{prefix}{direction}"], tensor)
            if weight is not None:
                del merged[name], merged[f"{prefix}{direction}"]
                merged[f"{prefix}weight"] = weight
    return merged


def _make_layer(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    layer = _guess_layer(name.lower(), tensors)
    parameters, buffers = own_parameters(layer), own_buffers(layer)
    for store in (parameters, buffers, own_modules(layer)):
        store.clear()
    for own, tensor in tensors.items():
        numbers = tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized
        if own.startswith(("running_", "num_batches")) or not (numbers or own.startswith(QUANTIZED_NAMES)):
            buffers[own] = tensor
        else:
            parameters[own] = nn.Parameter(tensor, requires_grad=False)
    return layer


def _guess_layer(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    hidden = next((t for own, t in tensors.items() if own.startswith("weight_hh")), None)
    if hidden is not None and hidden.dim() == 2 and hidden.shape[1] and hidden.shape[0] % hidden.shape[1] == 0:
        return _guess_recurrent(tensors, hidden)
    packed = next((tensors[own] for own in ("in_proj_weight", "q_proj_weight") if own in tensors), None)
    if packed is not None and packed.dim() == 2:
        size = packed.shape[1] if "in_proj_weight" in tensors else packed.shape[0]
        sizes = {"embed_dim": size, "kdim": size, "vdim": size}
        sizes |= {f"{e}dim": tensors[f"{e}_proj_weight"].shape[-1] for e in "kv" if f"{e}_proj_weight" in tensors}
        return _set_sizes(nn.MultiheadAttention(1, 1, device="meta"), **sizes)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None:
        return nn.Module()
    if "running_mean" in tensors:
        return _set_sizes(nn.BatchNorm1d(1, device="meta"), num_features=weight.numel())
    if weight.dim() == 1:
        if weight.numel() == 1 and bias is None:
            return nn.PReLU(device="meta")
        return _set_sizes(nn.LayerNorm(1, device="meta"), normalized_shape=(weight.numel(),))
    if weight.dim() == 2:
        rows, columns = weight.shape
        if bias is None and any(word in name for word in EMBEDDING_NAMES):
            return _set_sizes(nn.Embedding(1, 1, device="meta"), num_embeddings=rows, embedding_dim=columns)
        return _set_sizes(nn.Linear(1, 1, device="meta"), out_features=rows, in_features=columns)
    if weight.dim() in _CONVOLUTIONS:
        plain, transposed = _CONVOLUTIONS[weight.dim()]
        out, inputs, *taps = weight.shape
        kind = plain
        if bias is not None and out != bias.numel() == inputs:
            kind, out, inputs = transposed, inputs, out
        layer = kind(1, 1, 1, device="meta")
        return _set_sizes(layer, in_channels=inputs, out_channels=out, kernel_size=tuple(taps))
    return nn.Module()


def _guess_recurrent(tensors: Mapping[str, Tensor], hidden: Tensor) -> nn.Module:
    gates, size = hidden.shape[0] // hidden.shape[1], hidden.shape[1]
    first = next((t for own, t in tensors.items() if own in ("weight_ih", "weight_ih_l0") and t.dim() == 2), None)
    sizes = {"input_size": size if first is None else first.shape[1], "hidden_size": size}
    if "weight_hh" in tensors and gates in _CELLS:
        return _set_sizes(_CELLS[gates](1, 1, device="meta"), **sizes)
    if gates not in _RECURRENT:
        return nn.Module()
    layers = sum(own.startswith("weight_hh_l") and not own.endswith("_reverse") for own in tensors)
    both = any(own.endswith("_reverse") for own in tensors)
    return _set_sizes(_RECURRENT[gates](1, 1, device="meta"), **sizes, num_layers=layers, bidirectional=both)


def _set_sizes(layer: nn.Module, **sizes: Any) -> nn.Module:
    # Past the constructor, which would allocate memory and warn of sizes of 0.
    for name, size in sizes.items():
        setattr(layer, name, size)
    return layer
