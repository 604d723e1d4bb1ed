"""Why a forward pass broke off: which layer could not take its input, and what it expected instead."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initlab.errors import UserError
from initlab.inspection.batch import Batch, call_arguments, clone_tensors, flatten_tensors
from initlab.inspection.exceptions import raise_internal_error
from initlab.inspection.parameters import plain_name
from initlab.inspection.restore import eager_with_gradients, preserve_module
from initlab.inspection.sizes import shape_mismatches


class FailedLayer(NamedTuple):
    """The innermost module that was running when a forward pass broke off, and the tensor that it was given."""

    layer: str
    owner: nn.Module
    tensor: Tensor


REMEDY = " Give a batch that fits, or mend the module."

SHAPE_ERROR = re.compile(
    "cannot be multiplied|is invalid for input of size|must match the size of tensor|[Ss]izes of tensors must match|"
    "size mismatch|do not broadcast|Kernel size can't be greater|Output size is too small"
)
"""Torch's own words for a shape that does not fit, in functions that no layer of torch's stands around."""


@contextmanager
def explain_shape_errors(name: str, module: nn.Module, batch: Batch | None) -> Iterator[None]:
    """Turn what a forward pass inside the block raises into UserError where the batch does not fit the module.

    So it is where the arguments are not those of `forward`, a layer cannot take what comes to it, or torch says of a
    shape that it does not fit; the original error is its cause. Everything else that the module's own code raises comes
    through as it is; what initlab's own code raises becomes `OwnBug`.

    >>> with explain_shape_errors("the net", net := nn.Linear(3, 2), torch.ones(8, 4)):
    ...     net(torch.ones(8, 4))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: the net cannot take a batch of shape 8x4: Linear expects 3 numbers ... got 8x4. Give ...
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the module's own code raises
        raise_internal_error(error, name)
        sentence = None if batch is None else explain_error(name, module, batch, error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def explain_error(name: str, module: nn.Module, batch: Batch, error: Exception) -> str | None:
    """Say why a module cannot take a batch, or None where the error seems to be about something else."""
    if isinstance(error, TypeError) and (sentence := describe_signature_error(name, module, batch)):
        return sentence
    broken = find_failing_layer(module, batch)
    if sentence := describe_mismatch(name, batch, broken):
        return sentence + REMEDY
    return describe_failure(name, batch, broken, error) + REMEDY if broken and SHAPE_ERROR.search(str(error)) else None


def describe_forward_error(name: str, module: nn.Module, batch: Batch, error: Exception) -> str:
    """Say in one sentence why a module could not be run on a batch, naming the layer that refused and what it takes.

    Unlike `explain_shape_errors`, it has words for every error, and names options of the command line.
    """
    broken = find_failing_layer(module, batch)
    return describe_mismatch(name, batch, broken, options=True) or describe_failure(name, batch, broken, error)


def describe_mismatch(name: str, batch: Batch, broken: FailedLayer | None, options: bool = False) -> str | None:
    """Say which layer could not take what became of a batch; None where each could, as far as one can tell.

    Arguments: `options`: name those of the command line that mend it.
    """
    found = violated_expectation(broken.owner, broken.tensor) if broken else None
    if broken is None or found is None:
        return None
    hint = f" ({found.option(broken.owner)})" if options and found.option is not None else ""
    return (
        f"{name} cannot take a batch of shape {shapes_text(batch)}: {layer_label(broken)} expects "
        f"{found.wanted(broken.owner)}{hint} and got {found.got(broken.tensor)}."
    )


def describe_failure(name: str, batch: Batch, broken: FailedLayer | None, error: Exception) -> str:
    """Say where a module failed, in the words of the error."""
    said = str(error).splitlines()[0].rstrip(".") if str(error) else ""
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    place = f", in {layer_label(broken)}" if broken else ""
    return f"{name} failed on a batch of shape {shapes_text(batch)}{place} ({reason})."


def describe_signature_error(name: str, module: nn.Module, batch: Batch) -> str | None:
    """Say that `forward` takes other arguments than a batch gives it, or None where it takes them."""
    args, kwargs = call_arguments(batch)
    try:
        signature = inspect.signature(module.forward)
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        return (
            f"{name} cannot be called with this batch ({error}): its forward takes ({takes}). "
            "A tensor is one argument, a tuple or list several, a mapping keywords."
        )
    except ValueError:  # no signature to be had
        return None
    return None


def shapes_text(batch: Batch) -> str:
    """Write the shapes of a batch's tensors."""
    return " and ".join(map(shape_text, flatten_tensors(batch)))


def shape_text(tensor: Tensor) -> str:
    """Write a shape: 2x3x8x8."""
    return "x".join(map(str, tensor.shape)) or "one number"


def layer_label(broken: FailedLayer) -> str:
    """Name a layer and its kind."""
    kind = type(broken.owner).__name__
    return f"layer {broken.layer} ({kind})" if broken.layer else kind


def find_failing_layer(module: nn.Module, batch: Batch) -> FailedLayer | None:
    """Run a module until it breaks off; return the innermost module that was running, and what it was given."""
    running: list[tuple[str, nn.Module, Tensor | None]] = []
    handles: list[Any] = []
    args, kwargs = call_arguments(batch)
    with preserve_module(module), eager_with_gradients():
        for name, part in module.named_modules():
            if not isinstance(part, torch.jit.ScriptModule):
                handles.append(
                    part.register_forward_pre_hook(_record_input(running, plain_name(name)), with_kwargs=True)
                )
                handles.append(part.register_forward_hook(lambda *_: running.pop() and None))
        try:
            module(*clone_tensors(args), **clone_tensors(kwargs))
        except Exception:  # the very error that is being explained
            name, part, tensor = running[-1] if running else ("", module, None)
            return FailedLayer(name, part, tensor) if tensor is not None else None
        finally:
            for handle in handles:
                handle.remove()
    return None


def _record_input(running: list[tuple[str, nn.Module, Tensor | None]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append((name, module, next(iter(flatten_tensors((args, kwargs))), None)))

    return hook


class InputExpectation(NamedTuple):
    """What modules of some kinds take: when a tensor is not that, how to say what is wanted and what was got.

    `option`: options of `initlab diagnose` that mend it.
    """

    kinds: Any
    wrong: Callable[[Any, Tensor], bool]
    wanted: Callable[[Any], str]
    got: Callable[[Tensor], str] = shape_text
    option: Callable[[Any], str] | None = None


def violated_expectation(module: nn.Module, tensor: Tensor) -> InputExpectation | None:
    """Return what a layer takes that this tensor is not, or None where it fits as far as one can tell."""
    if shape_mismatches(
        module, {name: p.shape for name, p in module._parameters.items() if p is not None and not is_lazy(p)}
    ):
        return None  # a subclass that keeps other parameters may take other inputs
    return next((row for row in _EXPECTATIONS if isinstance(module, row.kinds) and row.wrong(module, tensor)), None)


def _channels_differ(module: Any, tensor: Tensor) -> bool:
    rank = len(module.kernel_size) + 2
    return tensor.dim() not in (rank, rank - 1) or tensor.shape[1 - rank] != module.in_channels


def _last_axis_differs(size: Callable[[Any], int]) -> Callable[[Any, Tensor], bool]:
    return lambda module, tensor: tensor.dim() == 0 or tensor.shape[-1] != size(module)


def _map_shape_text(module: Any) -> str:
    axes = ("L", "HxW", "DxHxW")[len(module.kernel_size) - 1]
    return f"inputs Nx{module.in_channels}x{axes}"


def _single_value_per_channel(module: Any, tensor: Tensor) -> bool:
    return module.training and tensor.dim() > 1 and tensor.numel() == tensor.shape[1]


def _invalid_index(module: Any, tensor: Tensor) -> bool:
    if tensor.is_floating_point():
        return True
    return tensor.numel() > 0 and not 0 <= int(tensor.min()) <= int(tensor.max()) < module.num_embeddings


def _range_text(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "fractions"
    lowest, highest = int(tensor.min()), int(tensor.max())
    return f"numbers up to {highest}" if lowest >= 0 else f"numbers from {lowest} to {highest}"


def _first_float_parameter(module: nn.Module) -> Any:
    return next((p for p in module.parameters(recurse=False) if p.is_floating_point()), None)


def _dtype_differs(module: nn.Module, tensor: Tensor) -> bool:
    own = _first_float_parameter(module)
    return own is not None and tensor.dtype != own.dtype


def _device_differs(module: nn.Module, tensor: Tensor) -> bool:
    own = _first_float_parameter(module)
    return own is not None and tensor.device != own.device


_DENSE = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention, nn.LayerNorm)

_EXPECTATIONS: tuple[InputExpectation, ...] = (
    InputExpectation(
        nn.Linear, _last_axis_differs(lambda m: m.in_features), lambda m: f"{m.in_features} numbers along the last axis"
    ),
    InputExpectation(nn.modules.conv._ConvNd, _channels_differ, _map_shape_text),
    InputExpectation(
        (nn.Embedding, nn.EmbeddingBag),
        _invalid_index,
        lambda m: f"whole numbers below {m.num_embeddings}",
        _range_text,
        lambda m: f"--tokens {m.num_embeddings}",
    ),
    InputExpectation(
        nn.RNNBase, _last_axis_differs(lambda m: m.input_size), lambda m: f"{m.input_size} numbers along the last axis"
    ),
    InputExpectation(
        nn.MultiheadAttention,
        _last_axis_differs(lambda m: m.embed_dim),
        lambda m: f"{m.embed_dim} numbers along the last axis",
    ),
    InputExpectation(
        nn.LayerNorm,
        lambda m, t: tuple(t.shape[-len(m.normalized_shape) :]) != tuple(m.normalized_shape),
        lambda m: f"last axes of {'x'.join(map(str, m.normalized_shape))}",
    ),
    InputExpectation(
        nn.modules.batchnorm._BatchNorm,
        _single_value_per_channel,
        lambda m: "more than one value per channel in training mode",
        option=lambda m: "a larger --batch, or --eval",
    ),
    InputExpectation(
        _DENSE, _dtype_differs, lambda m: f"numbers of {_first_float_parameter(m).dtype}", lambda t: str(t.dtype)
    ),
    InputExpectation(
        _DENSE,
        _device_differs,
        lambda m: f"numbers on {_first_float_parameter(m).device}",
        lambda t: f"some on {t.device}",
    ),
)
