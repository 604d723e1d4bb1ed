"""Values that come without their module: a module that holds them, the user's own or one guessed from names."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from initlab.errors import UserError
from initlab.inspection.parametrized import compute_weight_norm


def load_values(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `module` that holds `values`; the module is not changed, and no weight is copied.

    Raises:
        UserError: names or shapes are not those of the module.

    >>> import torch
    >>> net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> torch.equal(load_values(net, other.state_dict()).weight, other.weight)
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
    root = _make_layer("", groups.pop("")) if "" in groups else nn.Module()
    for prefix, tensors in groups.items():
        place = root
        *path, last = prefix.split(".")
        for part in path:
            place = _get_child(place, part)
        layer = _make_layer(last, tensors)
        layer._modules.update(_get_child(place, last)._modules)
        place._modules[last] = layer
    return root


def _get_child(place: nn.Module, name: str) -> nn.Module:
    # Past add_module, which refuses names that a module has for something else, such as "forward".
    found = place._modules.get(name)
    if found is None:
        found = place._modules[name] = nn.Module()
    return found


def _merge_weight_norms(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # weight_norm's two tensors, in the new and in the old form, become the weight that they stand for.
    found = dict(values)
    for name, tensor in values.items():
        for magnitude, direction in (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            ("weight_g", "weight_v"),
        ):
            prefix = name.removesuffix(magnitude)
            if prefix == name or f"{prefix}{direction}" not in values:
                continue
            weight = compute_weight_norm(values[f"{prefix}{direction}"], tensor)
            if weight is not None and f"{prefix}weight" not in values:
                del found[name], found[f"{prefix}{direction}"]
                found[f"{prefix}weight"] = weight
    return found


QUANTIZED_NAMES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "_packed_params")
"""How the names of weights begin; where their numbers are whole, they are codes of a quantization."""


def _make_layer(called: str, own: Mapping[str, Tensor]) -> nn.Module:
    layer = _guess_layer(called.lower(), own)
    layer._parameters.clear()
    layer._buffers.clear()
    for child in [*layer._modules]:
        del layer._modules[child]
    for name, tensor in own.items():
        numbers = tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized
        codes = not numbers and name.startswith(QUANTIZED_NAMES)
        if name.startswith(("running_", "num_batches")) or not (numbers or codes):
            layer._buffers[name] = tensor
        else:
            layer._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    return layer


def _guess_layer(called: str, own: Mapping[str, Tensor]) -> nn.Module:
    hidden = next((t for name, t in own.items() if name.startswith("weight_hh")), None)
    if hidden is not None and hidden.dim() == 2 and hidden.shape[1] and hidden.shape[0] % hidden.shape[1] == 0:
        return _guess_recurrent(own, hidden)
    packed = next((own[name] for name in ("in_proj_weight", "q_proj_weight") if name in own), None)
    if packed is not None and packed.dim() == 2:
        wide = {f"{end}dim": own[f"{end}_proj_weight"].shape[-1] for end in "kv" if f"{end}_proj_weight" in own}
        size = packed.shape[1] if "in_proj_weight" in own else packed.shape[0]
        return _set_sizes(
            nn.MultiheadAttention(1, 1, device="meta"), embed_dim=size, **({"kdim": size, "vdim": size} | wide)
        )
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None:
        return nn.Module()
    size = weight.numel()
    if "running_mean" in own:
        return _set_sizes(nn.BatchNorm1d(1, device="meta"), num_features=size)
    if weight.dim() == 1:
        if size == 1 and bias is None:
            return nn.PReLU(device="meta")
        return _set_sizes(nn.LayerNorm(1, device="meta"), normalized_shape=(size,))
    if weight.dim() == 2:
        rows, columns = weight.shape
        if bias is None and any(word in called for word in ("embed", "emb", "wte", "wpe")):
            return _set_sizes(nn.Embedding(1, 1, device="meta"), num_embeddings=rows, embedding_dim=columns)
        return _set_sizes(nn.Linear(1, 1, device="meta"), out_features=rows, in_features=columns)
    if weight.dim() in _CONVOLUTIONS:
        turned = bias is not None and weight.shape[0] != bias.numel() == weight.shape[1]
        plain, transposed = _CONVOLUTIONS[weight.dim()]
        first, second, *taps = weight.shape
        out, inputs = (second, first) if turned else (first, second)
        layer = (transposed if turned else plain)(1, 1, 1, device="meta")
        return _set_sizes(layer, in_channels=inputs, out_channels=out, kernel_size=tuple(taps))
    return nn.Module()


def _guess_recurrent(own: Mapping[str, Tensor], hidden: Tensor) -> nn.Module:
    gates, size = hidden.shape[0] // hidden.shape[1], hidden.shape[1]
    first = next((t for name, t in own.items() if name in ("weight_ih", "weight_ih_l0") and t.dim() == 2), None)
    inputs = size if first is None else first.shape[1]
    if "weight_hh" in own and gates in _CELLS:
        return _set_sizes(_CELLS[gates](1, 1, device="meta"), input_size=inputs, hidden_size=size)
    if gates not in _RECURRENT:
        return nn.Module()
    layers = sum(name.startswith("weight_hh_l") and not name.endswith("_reverse") for name in own)
    both = any(name.endswith("_reverse") for name in own)
    layer = _RECURRENT[gates](1, 1, device="meta")
    return _set_sizes(layer, input_size=inputs, hidden_size=size, num_layers=layers, bidirectional=both)


def _set_sizes(layer: nn.Module, **sizes: Any) -> nn.Module:
    # Past the constructor, which would ask for memory and warn of sizes of 0.
    for name, size in sizes.items():
        setattr(layer, name, size)
    return layer


_RECURRENT: dict[int, Any] = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}
_CELLS: dict[int, Any] = {4: nn.LSTMCell, 3: nn.GRUCell, 1: nn.RNNCell}
_CONVOLUTIONS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    3: (nn.Conv1d, nn.ConvTranspose1d),
    4: (nn.Conv2d, nn.ConvTranspose2d),
    5: (nn.Conv3d, nn.ConvTranspose3d),
}
