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

NamedModule: TypeAlias = tuple[str, nn.Module]
"""A module and its full name."""


def walk(module: nn.Module, kinds: Mapping[str, str] | None = None) -> Iterator[Parameter]:
    """Yield every parameter of `module` once, tied ones under the first of their names, in order of registration.

    A weight that other parameters hold (weight_norm's) comes once, in their place and under its own name.

    Args:
        module: any module; on the meta device too (nothing is read but shapes).
        kinds: {glob over names: kind} for parameters that initlab cannot know: dense, dense_in_out, conv, embedding,
            qkv, qkv_in_out, stack, stack_in_out, bias, norm_scale, norm_shift, layer_scale, token, position,
            relative_position, unknown.

    Raises:
        UserError: a glob that matches nothing, or a kind that does not fit the shape.

    >>> [(p.name, p.kind, p.fans) for p in walk(nn.Conv2d(4, 6, 3, groups=2, bias=False))]
    [('weight', 'conv', Fans(fan_in=18, fan_out=27, receptive=9))]
    """
    yield from list_parameters(list_modules(module), kinds)


def list_parameters(parts: Sequence[NamedModule], kinds: Mapping[str, str] | None = None) -> list[Parameter]:
    """Return what `walk` yields, of a module whose names and modules `list_modules` has listed.

    >>> [p.name for p in list_parameters(list_modules(nn.Linear(1, 1)))]
    ['weight', 'bias']
    """
    places: dict[int | tuple, list[_Occurrence]] = {}
    for place in _occurrences(parts):
        places.setdefault(_storage_key(place.held.tensors[-1] if place.held else place.tensor), []).append(place)
    found = [_parameter(at) for at in places.values()]
    return list(_apply_user_kinds(found, kinds)) if kinds else found


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Return every parameter's full name with its canonical one: the same whether the module is wrapped or not.

    Prefixes of torch.compile, of data parallel and of checkpointing wrappers go; `module.` goes only where all
    parameters have it, so that two names never become one.

    >>> canonical_names(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)))
    {'1.weight': '1.weight', '1.bias': '1.bias'}
    """
    canonical = _wrapper_stripper(list_modules(module))
    return {name: canonical(name) for name, _ in module.named_parameters(remove_duplicate=False)}


class _Occurrence(NamedTuple):
    prefix: str
    dotted: str
    own: str
    tensor: Tensor
    owner: nn.Module
    held: Parametrization | None = None
    refusal: str = ""

    @property
    def name(self) -> str:
        return self.dotted + self.own


def list_modules(module: nn.Module) -> list[NamedModule]:
    """Return names and modules as `named_modules(remove_duplicate=False)` does, several times faster.

    >>> [name for name, _ in list_modules(nn.Sequential(nn.Linear(1, 1)))]
    ['', '0']
    """
    found: list[NamedModule] = []
    waiting = [("", module)]
    while waiting:
        prefix, owner = part = waiting.pop()
        found.append(part)
        if owner._modules:
            dotted = f"{prefix}." if prefix else ""
            children = [(dotted + name, child) for name, child in owner._modules.items() if child is not None]
            waiting += reversed(children)
    return found


def _occurrences(parts: Sequence[NamedModule]) -> Iterator[_Occurrence]:
    canonical = _wrapper_stripper(parts)
    for prefix, owner in parts:
        held_by_others = may_be_parametrized(owner)
        if not owner._parameters and not held_by_others:
            continue
        dotted = canonical(f"{prefix}." if prefix else "")
        hidden: set[str] = set()
        if held_by_others:
            for own, held, tensor, refusal in parametrized_weights(owner):
                yield _Occurrence(prefix, dotted, own, tensor, owner, held, refusal)
            hidden = original_names(owner)
        is_list = isinstance(owner, ParametrizationList)
        for own, parameter in owner._parameters.items():
            if parameter is not None and own not in hidden and not (is_list and own.startswith("original")):
                yield _Occurrence(prefix, dotted, own, parameter, owner)


def _parameter(places: list[_Occurrence]) -> Parameter:
    first, *others = places
    name, aliases = first.name, tuple([other.name for other in others])
    if first.refusal:
        return Parameter(name, "parametrized", first.tensor, first.owner, aliases=aliases, refusal=first.refusal)
    found = describe_parameter(first.owner, first.own, first.tensor, first.prefix.rpartition(".")[2])
    own = (name, found.kind, first.tensor, first.owner, found.blocks, found.start)
    return Parameter(*own, aliases, first.held, found.refusal, found.doubt)


def _apply_user_kinds(parameters: list[Parameter], kinds: Mapping[str, str]) -> Iterator[Parameter]:
    for glob in kinds:
        if not any(fnmatch.fnmatchcase(name, glob) for parameter in parameters for name in parameter.names):
            near = did_you_mean(glob, [parameter.name for parameter in parameters])
            raise UserError(f"kinds: {glob!r} matches no parameter of the module.{near}")
    for parameter in parameters:
        wanted = next((k for glob, k in kinds.items() for n in parameter.names if fnmatch.fnmatchcase(n, glob)), "")
        if not wanted or parameter.refusal:
            yield parameter
            continue
        kind, blocks = user_kind_blocks(wanted, parameter.name, parameter.shape)
        start = parameter.start if kind == parameter.kind else START_VALUES.get(kind, 0.0)
        yield parameter._replace(kind=kind, blocks=blocks, start=start)


START_VALUES = {"norm_scale": 1.0, "layer_scale": 1e-6}
"""Constants that kinds named by the user start from, where it is not 0."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _wrapper_stripper(parts: Sequence[NamedModule]) -> Callable[[str], str]:
    # Returns what strips wrappers' prefixes from a full name, or from the part of one that ends in a dot.
    def short(name: str) -> str:
        if not any(wrapper in name for wrapper in wrappers):
            return name
        return ".".join(part for part in name.split(".") if part not in wrappers)

    together = "\n".join(prefix for prefix, _ in parts)
    wrappers = [wrapper for wrapper in _WRAPPERS if wrapper in together]
    wrapped, depth = [short(f"{prefix}.") for prefix, owner in parts if owner._parameters], 0
    while wrapped and all(name.startswith("module.") for name in wrapped):
        wrapped, depth = [name.removeprefix("module.") for name in wrapped], depth + 1
    return lambda name: short(name).removeprefix("module." * depth)


def _storage_key(tensor: Tensor) -> int | tuple:
    # Two Parameter objects over one storage are tied as well (`head.weight = nn.Parameter(table.weight.data)`).
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0 or hasattr(tensor, "full_tensor"):
        return id(tensor)
    try:
        return (tensor.device, tensor.data_ptr(), tensor.numel(), tensor.dtype)
    except RuntimeError:  # a tensor without storage of its own
        return id(tensor)


WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_name(name: str) -> str:
    """Return a module's name without the parts that wrappers such as torch.compile's put into it.

    >>> plain_name("net._orig_mod.head")
    'net.head'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
