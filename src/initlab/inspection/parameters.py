"""Every parameter of a module once, under its canonical name."""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from initlab.errors import UserError, did_you_mean
from initlab.inspection.kinds import describe_parameter
from initlab.inspection.parametrized import may_be_parametrized, original_names, parametrized_weights
from initlab.inspection.records import Parameter, Parametrization
from initlab.inspection.shapes import user_kind_blocks
from initlab.inspection.torch_internals import WRAPPER_NAMES, own_modules, own_parameters

NamedModule: TypeAlias = tuple[str, nn.Module]
"""A module's full name, and the module."""

START_VALUES = {"norm_scale": 1.0, "layer_scale": 1e-6}
"""Initial constants, other than 0, of the kinds that a user gives."""


def walk(module: nn.Module, kinds: Mapping[str, str] | None = None) -> Iterator[Parameter]:
    """Yield every parameter of `module` once, tied ones under the first of their names, in order of registration.

    A parametrized weight (weight_norm's) comes once, under its own name, in place of the parameters it is computed
    from.

    Args:
        module: any module, on any device; only shapes are read.
        kinds: {glob over names: kind} for parameters of unknown kinds: dense, dense_in_out, conv, embedding, qkv,
            qkv_in_out, stack, stack_in_out, bias, norm_scale, norm_shift, layer_scale, token, position,
            relative_position, unknown.

    Raises:
        UserError: a glob that matches nothing, or a kind that does not fit the shape.

    >>> [(p.name, p.kind, p.fans) for p in walk(nn.Conv2d(4, 6, 3, groups=2, bias=False))]
    [('weight', 'conv', Fans(fan_in=18, fan_out=27, receptive=9))]
    """
    yield from list_parameters(list_modules(module), kinds)


def list_parameters(modules: Sequence[NamedModule], kinds: Mapping[str, str] | None = None) -> list[Parameter]:
    """Return what `walk` yields, for the result of `list_modules`.

    >>> [p.name for p in list_parameters(list_modules(nn.Linear(1, 1)))]
    ['weight', 'bias']
    """
    tied: dict[int | tuple, list[_Occurrence]] = {}
    for occurrence in _occurrences(modules):
        tied.setdefault(_storage_key(occurrence), []).append(occurrence)
    parameters = [_parameter(occurrences) for occurrences in tied.values()]
    return list(_apply_user_kinds(parameters, kinds)) if kinds else parameters


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Return {full name: canonical name} of every parameter; the canonical one does not depend on wrappers.

    Prefixes of torch.compile, data parallelism and checkpointing wrappers are removed; `module.` only where all
    parameters have it, so that two names stay different.

    >>> canonical_names(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)))
    {'1.weight': '1.weight', '1.bias': '1.bias'}
    """
    canonical = _wrapper_stripper(list_modules(module))
    return {name: canonical(name) for name, _ in module.named_parameters(remove_duplicate=False)}


def plain_name(name: str) -> str:
    """Return a module's or parameter's name without the parts that wrappers such as torch.compile's add.

    >>> plain_name("net._orig_mod.head")
    'net.head'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)


class _Occurrence(NamedTuple):
    layer: str  # the owner's own name in its parent
    name: str
    own_name: str
    tensor: Tensor
    owner: nn.Module
    parametrization: Parametrization | None = None
    refusal: str = ""


def list_modules(module: nn.Module) -> list[NamedModule]:
    """Return names and modules as `named_modules(remove_duplicate=False)` does, several times faster.

    >>> [name for name, _ in list_modules(nn.Sequential(nn.Linear(1, 1)))]
    ['', '0']
    """
    modules: list[NamedModule] = []
    waiting = [("", module)]
    while waiting:
        prefix, owner = part = waiting.pop()
        modules.append(part)
        if children := own_modules(owner):
            dotted = f"{prefix}." if prefix else ""
            waiting += reversed([(dotted + name, child) for name, child in children.items() if child is not None])
    return modules


def _occurrences(modules: Sequence[NamedModule]) -> Iterator[_Occurrence]:
    canonical = _wrapper_stripper(modules)
    for prefix, owner in modules:
        parameters, parametrized = own_parameters(owner), may_be_parametrized(owner)
        if not parameters and not parametrized:
            continue
        dotted, layer = canonical(f"{prefix}." if prefix else ""), prefix.rpartition(".")[2]
        hidden: set[str] = set()
        if parametrized:
            for own, parametrization, tensor, refusal in parametrized_weights(owner):
                yield _Occurrence(layer, dotted + own, own, tensor, owner, parametrization, refusal)
            hidden = original_names(owner)
        is_list = isinstance(owner, ParametrizationList)
        for own, parameter in parameters.items():
            if parameter is not None and own not in hidden and not (is_list and own.startswith("original")):
                yield _Occurrence(layer, dotted + own, own, parameter, owner)


def _parameter(occurrences: list[_Occurrence]) -> Parameter:
    first, aliases = occurrences[0], tuple([other.name for other in occurrences[1:]])
    if first.refusal:
        return Parameter(first.name, "parametrized", first.tensor, first.owner, aliases=aliases, refusal=first.refusal)
    kind, blocks, start, refusal, mismatch = describe_parameter(first.owner, first.own_name, first.tensor, first.layer)
    place = (first.name, kind, first.tensor, first.owner, blocks, start)
    return Parameter(*place, aliases, first.parametrization, refusal, mismatch)


def _apply_user_kinds(parameters: list[Parameter], kinds: Mapping[str, str]) -> Iterator[Parameter]:
    for glob in kinds:
        if not any(fnmatch.fnmatchcase(name, glob) for parameter in parameters for name in parameter.names):
            near = did_you_mean(glob, [parameter.name for parameter in parameters])
            raise UserError(f"kinds: {glob!r} matches no parameter of the module.{near}")
    for parameter in parameters:
        user_kind = next((k for glob, k in kinds.items() for n in parameter.names if fnmatch.fnmatchcase(n, glob)), "")
        if not user_kind or parameter.refusal:
            yield parameter
            continue
        kind, blocks = user_kind_blocks(user_kind, parameter.name, parameter.shape)
        start = parameter.start if kind == parameter.kind else START_VALUES.get(kind, 0.0)
        yield parameter._replace(kind=kind, blocks=blocks, start=start)


def _wrapper_stripper(modules: Sequence[NamedModule]) -> Callable[[str], str]:
    # Returns a function that removes wrappers from a full name, or from a prefix that ends in a dot.
    together = "\n".join(prefix for prefix, _ in modules)
    wrapped = any(wrapper in together for wrapper in WRAPPER_NAMES)
    plain = plain_name if wrapped else str
    prefixes, depth = [plain(f"{prefix}.") for prefix, owner in modules if own_parameters(owner)], 0
    while prefixes and all(name.startswith("module.") for name in prefixes):
        prefixes, depth = [name.removeprefix("module.") for name in prefixes], depth + 1
    return lambda name: plain(name).removeprefix("module." * depth)


def _storage_key(occurrence: _Occurrence) -> int | tuple:
    # Two Parameter objects over one storage are tied as well (`head.weight = nn.Parameter(table.weight.data)`).
    parametrization = occurrence.parametrization
    tensor = parametrization.tensors[-1] if parametrization else occurrence.tensor
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0 or hasattr(tensor, "full_tensor"):
        return id(tensor)
    try:
        return (tensor.device, tensor.data_ptr(), tensor.numel(), tensor.dtype)
    except RuntimeError:  # a tensor without storage of its own
        return id(tensor)
