"""Weights computed from other parameters: torch's weight_norm, new and old, and every other parametrization."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm as OldSpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm

from initlab.errors import UserError
from initlab.inspection.records import Parametrization
from initlab.inspection.restore import preserve_modes
from initlab.inspection.storage import storage_refusal
from initlab.inspection.torch_internals import (
    SpectralNorm,
    WeightNorm,
    forward_pre_hooks,
    own_modules,
    own_parameters,
)
from initlab.system.random_streams import seed_global_state

INITIALIZE_FIRST = "initialize the module before the parametrization is registered"
MISMATCH = "the magnitude of its weight_norm"


def may_be_parametrized(owner: nn.Module) -> bool:
    """Return whether a module may have parametrized weights: a fast test, because there are many modules.

    >>> may_be_parametrized(nn.Linear(2, 2))
    False
    """
    return bool(forward_pre_hooks(owner)) or "parametrizations" in own_modules(owner)


def parametrized_weights(owner: nn.Module) -> Iterator[tuple[str, Parametrization | None, Tensor, str]]:
    """Yield (own name, parametrization or None, a tensor of the weight's shape and dtype, refusal) of each weight."""
    if parametrize.is_parametrized(owner):
        assert isinstance(owner.parametrizations, nn.ModuleDict)
        for name, steps in owner.parametrizations.items():
            assert isinstance(steps, ParametrizationList)
            yield (name, *_read_parametrization(name, steps))
    for hook in forward_pre_hooks(owner).values():
        if isinstance(hook, OldWeightNorm):
            yield (hook.name, *_read_old_weight_norm(owner, hook))
        elif isinstance(hook, OldSpectralNorm):
            original = own_parameters(owner)[f"{hook.name}_orig"]
            assert original is not None
            yield hook.name, None, original, _spectral_norm_refusal(hook.name)


def original_names(owner: nn.Module) -> set[str]:
    """Return the own names of parameters from which the old weight_norm and spectral_norm compute a weight.

    >>> original_names(nn.Linear(2, 2))
    set()
    """
    names = set()
    for hook in forward_pre_hooks(owner).values():
        if isinstance(hook, OldWeightNorm):
            names |= {f"{hook.name}_g", f"{hook.name}_v"}
        elif isinstance(hook, OldSpectralNorm):
            names.add(f"{hook.name}_orig")
    return names


def _originals(steps: ParametrizationList) -> tuple[Tensor, ...]:
    names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]
    return tuple(getattr(steps, name) for name in names)


def _read_parametrization(name: str, steps: ParametrizationList) -> tuple[Parametrization | None, Tensor, str]:
    tensors = _originals(steps)
    label = " of ".join(type(step).__name__.removeprefix("_") for step in reversed(list(steps)))
    if any(isinstance(step, SpectralNorm) for step in steps):
        return None, tensors[0], _spectral_norm_refusal(name)
    if any(not hasattr(step, "right_inverse") for step in steps):
        return None, tensors[0], f"its parametrization {label} has no right_inverse: {INITIALIZE_FIRST}"
    if isinstance(steps[0], WeightNorm) and (refusal := _weight_norm_mismatch(tensors[0], tensors[1], steps[0].dim)):
        return None, tensors[1], refusal
    alone = isinstance(steps[0], WeightNorm) and len(steps) == 1
    parametrization = Parametrization(
        "weight_norm" if alone else label,
        tensors,
        lambda: _effective_weight(steps),
        lambda value: _write_weight(steps, value),
        lambda value: _simulate_write(steps, value),
    )
    return parametrization, tensors[1] if alone else _effective_weight(steps), ""


def _effective_weight(steps: ParametrizationList) -> Tensor:
    # In training mode a parametrization may update its buffers: reading must not.
    with preserve_modes(steps), torch.no_grad():
        return steps.eval()()


def _write_weight(steps: ParametrizationList, value: Tensor) -> None:
    # Values are copied into the originals, as for every parameter: optimizers and captured graphs keep their storage.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_global_state("right inverse", device=torch.device("cpu"))  # some complete a basis at random
        for step in reversed(list(steps)):
            value = step.right_inverse(value)  # type: ignore[operator]
        for original, each in zip(_originals(steps), [value] if steps.is_tensor else value, strict=True):
            original.copy_(each)


def _simulate_write(steps: ParametrizationList, value: Tensor) -> Tensor:
    simulated = copy.deepcopy(steps)
    _write_weight(simulated, value.clone())
    return _effective_weight(simulated)


def _read_old_weight_norm(owner: nn.Module, hook: OldWeightNorm) -> tuple[Parametrization | None, Tensor, str]:
    magnitude, direction = own_parameters(owner)[f"{hook.name}_g"], own_parameters(owner)[f"{hook.name}_v"]
    assert magnitude is not None
    assert direction is not None
    if refusal := _weight_norm_mismatch(magnitude, direction, hook.dim):
        return None, direction, refusal

    def read() -> Tensor:
        with torch.no_grad():
            return hook.compute_weight(owner)

    def write(value: Tensor) -> None:
        with torch.no_grad():
            direction.copy_(value)
            magnitude.copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(owner, hook.name, hook.compute_weight(owner))

    def simulate(value: Tensor) -> Tensor:
        weight = compute_weight_norm(value, torch.norm_except_dim(value, 2, hook.dim))
        return value if weight is None else weight  # None: no elements

    return Parametrization("weight_norm", (magnitude, direction), read, write, simulate), direction, ""


def compute_weight_norm(direction: Tensor, magnitude: Tensor) -> Tensor | None:
    """Return g·v/‖v‖ for any dimension that g keeps, or None where g and v are no pair of weight_norm's.

    torch's own operator does not check that g fits its dimension, and writes out of bounds where it does not; here
    the norm is over all dimensions in which g has one element. Source: Salimans & Kingma 2016, "Weight Normalization".

    Args:
        direction: v.
        magnitude: g, of one element or of as many dimensions as v.

    >>> v = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    >>> compute_weight_norm(v, torch.tensor([[5.0], [5.0]])).tolist(), compute_weight_norm(v, torch.ones(3, 1))
    ([[3.0, 4.0], [3.0, 4.0]], None)
    """
    for tensor in (direction, magnitude):
        if not (tensor.is_floating_point() or tensor.is_complex()) or storage_refusal(tensor) is not None:
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
    """Check that the tensors of every weight_norm fit each other: torch does not, and crashes.

    Raises:
        UserError: a magnitude does not fit its direction.
    """
    for name, owner in module.named_modules():
        for own, _, _, refusal in parametrized_weights(owner) if may_be_parametrized(owner) else ():
            if refusal.startswith(MISMATCH):
                raise UserError(f"{name}.{own} cannot be computed: {refusal}.".lstrip("."))


def _weight_norm_mismatch(magnitude: Tensor, direction: Tensor, dim: int) -> str:
    # torch's operator checks nothing: a magnitude of another size makes it read and write out of bounds.
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
        f"spectral_norm divides {name} by its largest singular value, so no scheme's variance could hold: "
        f"{INITIALIZE_FIRST}, or leave it out with skip="
    )
