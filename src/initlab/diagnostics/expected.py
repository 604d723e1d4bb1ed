"""Why a forward pass broke off: which layer could not take its input, and what it expected instead."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from initlab.diagnostics.batch import Batch, arguments, copied, in_order
from initlab.diagnostics.state import as_found, undisturbed
from initlab.diagnostics.weights import plain_name


def misfit(name: str, module: nn.Module, batch: Batch, error: Exception) -> str:
    """Say in one sentence why a module could not be run on a batch, naming the layer that refused and what it takes."""
    said = str(error).splitlines()[0].rstrip(".") if str(error) else ""
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    shapes = " and ".join(map(shape, in_order(batch)))
    refused = breaking_layer(module, batch)
    if refused is None:
        return f"{name} failed on a batch of shape {shapes} ({reason})."
    layer, owner, tensor = refused
    wanted = expectation(owner, tensor)
    place = f"layer {layer} ({type(owner).__name__})" if layer else type(owner).__name__
    if wanted is None:
        return f"{name} failed on a batch of shape {shapes}, in {place} ({reason})."
    got = shape(tensor)
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        got = "fractions" if tensor.is_floating_point() else f"numbers up to {int(tensor.max())}"
    return f"{name} cannot take a batch of shape {shapes}: {place} expects {wanted} and got {got}."


def shape(tensor: Tensor) -> str:
    """Write a shape: 2x3x8x8."""
    return "x".join(map(str, tensor.shape)) or "one number"


def breaking_layer(module: nn.Module, batch: Batch) -> tuple[str, nn.Module, Tensor] | None:
    """Run a module until it breaks off; return the innermost module that was running, and what it was given."""
    running: list[tuple[str, nn.Module, Tensor | None]] = []
    handles: list[Any] = []
    args, kwargs = arguments(batch)
    with as_found(module), undisturbed():
        for name, part in module.named_modules():
            if not isinstance(part, torch.jit.ScriptModule):
                handles.append(part.register_forward_pre_hook(_enter(running, plain_name(name)), with_kwargs=True))
                handles.append(part.register_forward_hook(lambda *_: running.pop() and None))
        try:
            module(*copied(args), **copied(kwargs))
        except Exception:  # the very error that is being explained
            name, part, tensor = running[-1] if running else ("", module, None)
            return (name, part, tensor) if tensor is not None else None
        finally:
            for handle in handles:
                handle.remove()
    return None


def _enter(running: list[tuple[str, nn.Module, Tensor | None]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append((name, module, next(iter(in_order((args, kwargs))), None)))

    return hook


def expectation(module: nn.Module, tensor: Tensor) -> str | None:
    """Say what a layer takes that this tensor is not, or None where it fits as far as one can tell."""
    for kinds, wrong, wanted in _EXPECTATIONS:
        if isinstance(module, kinds) and wrong(module, tensor):
            return wanted(module)
    return None


def _channels(module: Any, tensor: Tensor) -> bool:
    rank = len(module.kernel_size) + 2
    return tensor.dim() not in (rank, rank - 1) or tensor.shape[1 - rank] != module.in_channels


def _last(size: Callable[[Any], int]) -> Callable[[Any, Tensor], bool]:
    return lambda module, tensor: tensor.dim() == 0 or tensor.shape[-1] != size(module)


def _maps(module: Any) -> str:
    axes = ("L", "HxW", "DxHxW")[len(module.kernel_size) - 1]
    return f"inputs Nx{module.in_channels}x{axes}"


def _one_value(module: Any, tensor: Tensor) -> bool:
    return module.training and tensor.dim() > 1 and tensor.numel() == tensor.shape[1]


_EXPECTATIONS: tuple[tuple[Any, Callable[[Any, Tensor], bool], Callable[[Any], str]], ...] = (
    (nn.Linear, _last(lambda m: m.in_features), lambda m: f"{m.in_features} numbers along the last axis"),
    (nn.modules.conv._ConvNd, _channels, _maps),
    (
        (nn.Embedding, nn.EmbeddingBag),
        lambda m, t: t.is_floating_point() or int(t.max()) >= m.num_embeddings,
        lambda m: f"whole numbers below {m.num_embeddings} (--tokens {m.num_embeddings})",
    ),
    (nn.RNNBase, _last(lambda m: m.input_size), lambda m: f"{m.input_size} numbers along the last axis"),
    (nn.MultiheadAttention, _last(lambda m: m.embed_dim), lambda m: f"{m.embed_dim} numbers along the last axis"),
    (
        nn.LayerNorm,
        lambda m, t: tuple(t.shape[-len(m.normalized_shape) :]) != tuple(m.normalized_shape),
        lambda m: f"last axes of {'x'.join(map(str, m.normalized_shape))}",
    ),
    (
        nn.modules.batchnorm._BatchNorm,
        _one_value,
        lambda m: "more than one value per channel in training mode (a larger --batch, or --eval)",
    ),
)
