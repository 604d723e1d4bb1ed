"""Every parameter of a module once, under its canonical name."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .kinds import describe
from .records import Parameter


def walk(module: nn.Module) -> Iterator[Parameter]:
    """Yield every parameter of `module` once, tied ones under the first of their names, in order of registration.

    Args:
        module: any module; on the meta device too (nothing is read but shapes).

    >>> [(p.name, p.kind, p.fans) for p in walk(nn.Conv2d(4, 6, 3, groups=2, bias=False))]
    [('weight', 'conv', Fans(fan_in=18, fan_out=27, receptive=9))]
    """
    places: dict[int | tuple, list[tuple[str, Tensor, nn.Module, str]]] = {}
    names = canonical_names(module)
    for prefix, owner in module.named_modules():
        for own_name, tensor in owner._parameters.items():
            if tensor is not None:
                name = names[f"{prefix}.{own_name}" if prefix else own_name]
                places.setdefault(_identity(tensor), []).append((name, tensor, owner, own_name))
    # Modules reached by two paths are listed once by named_modules; their other names come from the full listing.
    others: dict[int | tuple, list[str]] = {}
    for full, tensor in module.named_parameters(remove_duplicate=False):
        others.setdefault(_identity(tensor), []).append(names[full])
    for key, found in places.items():
        name, tensor, owner, own_name = found[0]
        kind, blocks, start = describe(owner, own_name, tensor)
        aliases = tuple(other for other in others[key] if other != name)
        yield Parameter(name, kind, tensor, owner, blocks, start, aliases)


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Return every parameter's full name with its canonical one: the same whether the module is wrapped or not.

    Prefixes of torch.compile, of data parallel and of checkpointing wrappers go; `module.` goes only where all
    parameters have it, so that two names never become one.

    >>> canonical_names(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)))
    {'1.weight': '1.weight', '1.bias': '1.bias'}
    """
    full = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    short = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in full]
    while short and all(name.startswith("module.") for name in short):
        short = [name.removeprefix("module.") for name in short]
    return dict(zip(full, short, strict=True))


_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _identity(tensor: Tensor) -> int | tuple:
    # Two Parameter objects over one storage are tied as well (`head.weight = nn.Parameter(table.weight.data)`).
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    try:
        return (tensor.device, tensor.data_ptr(), tensor.numel(), tensor.dtype)
    except RuntimeError:  # a tensor without storage of its own, such as a distributed one
        return id(tensor)
