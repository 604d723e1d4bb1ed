"""Weights that other parameters hold: torch's weight_norm in its new and its old form, and other parametrizations."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from initlab.errors import UserError
from initlab.inspection.records import Parametrization
from initlab.inspection.storage import storage_refusal
from initlab.system.random_streams import seed_global_state

INITIALIZE_FIRST = "initialize the module before the parametrization is registered"


def may_be_parametrized(owner: nn.Module) -> bool:
    """Return whether `owner` may have weights that other parameters hold: a quick look, for modules are many.

    >>> may_be_parametrized(nn.Linear(2, 2))
    False
    """
    return bool(owner._forward_pre_hooks) or "parametrizations" in owner._modules


def parametrized_weights(owner: nn.Module) -> Iterator[tuple[str, Parametrization | None, Tensor, str]]:
    """Yield (own name, how it is held or None, a tensor of its shape and dtype, refusal) of a module's held weights."""
    if parametrize.is_parametrized(owner):
        assert isinstance(owner.parametrizations, nn.ModuleDict)
        for name, parametrization in owner.parametrizations.items():
            assert isinstance(parametrization, ParametrizationList)
            yield (name, *_read_parametrization(owner, name, parametrization))
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            magnitude, direction = owner._parameters[f"{hook.name}_g"], owner._parameters[f"{hook.name}_v"]
            assert magnitude is not None
            assert direction is not None
            if refusal := _weight_norm_mismatch(magnitude, direction, hook.dim):
                yield hook.name, None, direction, refusal
            else:
                yield hook.name, _old_weight_norm(owner, hook), direction, ""
        elif isinstance(hook, SpectralNorm):
            original = owner._parameters[f"{hook.name}_orig"]
            assert original is not None
            yield hook.name, None, original, _spectral_norm_refusal(hook.name)


def original_names(owner: nn.Module) -> set[str]:
    """Return the own names of the parameters of `owner` that merely hold a weight (old weight_norm, spectral_norm).

    >>> original_names(nn.Linear(2, 2))
    set()
    """
    found = set()
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            found |= {f"{hook.name}_g", f"{hook.name}_v"}
        elif isinstance(hook, SpectralNorm):
            found.add(f"{hook.name}_orig")
    return found


def _read_parametrization(
    owner: nn.Module, name: str, steps: ParametrizationList
) -> tuple[Parametrization | None, Tensor, str]:
    names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]
    tensors = tuple(getattr(steps, each) for each in names)
    kinds = [type(step).__name__.removeprefix("_") for step in steps]
    by = "weight_norm" if kinds == ["WeightNorm"] else " of ".join(reversed(kinds))
    if any(isinstance(step, _SpectralNorm) for step in steps):
        return None, tensors[0], _spectral_norm_refusal(name)
    if any(not hasattr(step, "right_inverse") for step in steps):
        return None, tensors[0], f"its parametrization {by} has no right_inverse: {INITIALIZE_FIRST}"
    if isinstance(steps[0], _WeightNorm) and (refusal := _weight_norm_mismatch(tensors[0], tensors[1], steps[0].dim)):
        return None, tensors[1], refusal
    one = len(kinds) == 1 and isinstance(steps[0], _WeightNorm)
    example = tensors[1] if one else _effective_weight(steps)
    held = Parametrization(
        by,
        tuple(f"parametrizations.{name}.{each}" for each in names),
        tensors,
        lambda: _effective_weight(steps),
        lambda value: _write_weight(steps, value),
        lambda value: _simulate_write(steps, value),
    )
    return held, example, ""


def _effective_weight(steps: ParametrizationList) -> Tensor:
    # In training mode a parametrization may update its buffers: reading must not.
    training = [module for module in steps.modules() if module.training]
    try:
        steps.eval()
        with torch.no_grad():
            return steps()
    finally:
        for module in training:
            module.training = True


def _write_weight(steps: ParametrizationList, value: Tensor) -> None:
    # Values are copied into the originals, as for every parameter: optimizers and captured graphs keep their storage.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_global_state("right inverse", device=torch.device("cpu"))  # some right inverses complete a basis at random
        for step in reversed(list(steps)):
            value = step.right_inverse(value)  # type: ignore[operator]
        values = [value] if steps.is_tensor else list(value)
        names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]
        for name, each in zip(names, values, strict=True):
            getattr(steps, name).copy_(each)


def _simulate_write(steps: ParametrizationList, value: Tensor) -> Tensor:
    rehearsal = copy.deepcopy(steps)
    _write_weight(rehearsal, value.clone())
    return _effective_weight(rehearsal)


def _old_weight_norm(owner: nn.Module, hook: WeightNorm) -> Parametrization:
    magnitude, direction = owner._parameters[f"{hook.name}_g"], owner._parameters[f"{hook.name}_v"]
    assert magnitude is not None
    assert direction is not None

    def read() -> Tensor:
        with torch.no_grad():
            return hook.compute_weight(owner)

    def write(value: Tensor) -> None:
        with torch.no_grad():
            direction.copy_(value)
            magnitude.copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(owner, hook.name, hook.compute_weight(owner))

    def rehearse(value: Tensor) -> Tensor:
        return torch._weight_norm(value, torch.norm_except_dim(value, 2, hook.dim), hook.dim)

    names = (f"{hook.name}_g", f"{hook.name}_v")
    return Parametrization("weight_norm", names, (magnitude, direction), read, write, rehearse)


def compute_weight_norm(direction: Tensor, magnitude: Tensor) -> Tensor | None:
    """Return g·v/‖v‖ for any dimension that g keeps, or None where g and v are no pair of weight_norm's.

    torch's own operator believes that g fits the dimension it is told, and writes past its memory where it does not;
    here the norm is over all dimensions in which g has one element. Source: Salimans & Kingma 2016, "Weight
    Normalization".

    >>> v = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    >>> compute_weight_norm(v, torch.tensor([[5.0], [5.0]])).tolist(), compute_weight_norm(v, torch.ones(3, 1))
    ([[3.0, 4.0], [3.0, 4.0]], None)
    """
    floating = all(tensor.is_floating_point() or tensor.is_complex() for tensor in (direction, magnitude))
    if not floating or any(storage_refusal(tensor) is not None for tensor in (direction, magnitude)):
        return None
    if magnitude.dim() not in (0, direction.dim()) or direction.numel() == 0:
        return None
    sizes = magnitude.shape or (1,) * direction.dim()
    if any(own not in (1, size) for own, size in zip(sizes, direction.shape, strict=True)):
        return None
    over = [index for index, own in enumerate(sizes) if own == 1]
    norm = torch.linalg.vector_norm(direction, dim=over, keepdim=True) if over else direction.abs()
    return direction * (magnitude.reshape(sizes) / norm)


def check_weight_norms(module: nn.Module) -> None:
    """Raise UserError where the tensors of a weight_norm do not fit each other: torch would not notice, and crash."""
    for name, owner in module.named_modules():
        for own, _, _, refusal in parametrized_weights(owner) if may_be_parametrized(owner) else ():
            if refusal.startswith(MISMATCH):
                raise UserError(f"{name}.{own} cannot be computed: {refusal}.".lstrip("."))


MISMATCH = "the magnitude of its weight_norm"


def _weight_norm_mismatch(magnitude: Tensor, direction: Tensor, dim: int) -> str:
    # torch._weight_norm checks nothing: a magnitude of another size makes it read and write past its memory.
    if (unusual := storage_refusal(magnitude)) is not None:
        return f"{MISMATCH} cannot be read, {unusual[1]}"
    kept = {dim, dim + direction.dim()} if dim != -1 else set()
    wanted = tuple(size if index in kept else 1 for index, size in enumerate(direction.shape))
    if magnitude.numel() == 1 == math.prod(wanted) or tuple(magnitude.shape) == wanted:
        return ""
    shapes = [list(tensor.shape) for tensor in (magnitude, direction)]
    return f"{MISMATCH} has the shape {shapes[0]}, which does not fit a direction of {shapes[1]}: register it again"


def _spectral_norm_refusal(name: str) -> str:
    return (
        f"spectral_norm divides {name} by its largest singular value, so no scheme's variance could hold: {INITIALIZE_FIRST}, "
        "or leave it out with skip="
    )
