"""Explain a failed forward pass: which layer could not take its input, and what it expected."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initlab.errors import UserError
from initlab.inspection.batch import Batch, call_arguments, clone_tensors, flatten_tensors
from initlab.inspection.exceptions import raise_internal_error
from initlab.inspection.kinds import shape_mismatches
from initlab.inspection.parameters import plain_name
from initlab.inspection.restore import eager_with_gradients, preserve_module
from initlab.inspection.torch_internals import BatchNorm, ConvNd, own_parameters

REMEDY = " Give a batch that fits, or mend the module."

SHAPE_ERROR = re.compile(
    "cannot be multiplied|is invalid for input of size|must match the size of tensor|[Ss]izes of tensors must match|"
    "size mismatch|do not broadcast|Kernel size can't be greater|Output size is too small"
)
"""torch's messages about a shape that does not fit, in functions called outside torch's layers."""


class FailedLayer(NamedTuple):
    """The innermost module that was running when a forward pass failed, and its first input tensor."""

    layer: str
    owner: nn.Module
    tensor: Tensor

    def __str__(self) -> str:
        kind = type(self.owner).__name__
        return f"layer {self.layer} ({kind})" if self.layer else kind


@contextmanager
def explain_shape_errors(name: str, module: nn.Module, batch: Batch | None) -> Iterator[None]:
    """Raise UserError where a forward pass inside the block fails because the batch does not fit the module.

    The batch does not fit where its arguments are not those of `forward`, a layer cannot take its input, or torch's
    message is about a shape. The original error is the cause. Any other error of the module's own code is not changed;
    an error of initlab's own code becomes `InternalError`.

    Args:
        name: what the message calls the module.
        module: the module that runs inside the block.
        batch: its batch, or None where there is none.

    Raises:
        UserError: the batch does not fit.

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
    except Exception as error:  # anything that the module's own code raises
        raise_internal_error(error, name)
        sentence = None if batch is None else _explain_error(name, module, batch, error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def describe_forward_error(name: str, module: nn.Module, batch: Batch, error: Exception) -> str:
    """Return one sentence that says which layer failed on a batch and what it takes, with options of the command line.

    Args:
        name: what the sentence calls the module.
        module: the module that failed.
        batch: what it was called with.
        error: what it raised; every error gets a sentence.
    """
    failed = _find_failing_layer(module, batch)
    return _describe_mismatch(name, batch, failed, options=True) or _describe_failure(name, batch, failed, error)


def _explain_error(name: str, module: nn.Module, batch: Batch, error: Exception) -> str | None:
    if isinstance(error, TypeError) and (sentence := _describe_signature_error(name, module, batch)):
        return sentence
    failed = _find_failing_layer(module, batch)
    if sentence := _describe_mismatch(name, batch, failed):
        return sentence + REMEDY
    return _describe_failure(name, batch, failed, error) + REMEDY if failed and SHAPE_ERROR.search(str(error)) else None


def _describe_mismatch(name: str, batch: Batch, failed: FailedLayer | None, options: bool = False) -> str | None:
    expectation = _violated_expectation(failed.owner, failed.tensor) if failed else None
    if failed is None or expectation is None:
        return None
    hint = f" ({expectation.option(failed.owner)})" if options and expectation.option is not None else ""
    return (
        f"{name} cannot take a batch of shape {_shapes_text(batch)}: {failed} expects "
        f"{expectation.wanted(failed.owner)}{hint} and got {expectation.actual(failed.tensor)}."
    )


def _describe_failure(name: str, batch: Batch, failed: FailedLayer | None, error: Exception) -> str:
    first_line = str(error).splitlines()[0].rstrip(".") if str(error) else ""
    reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    place = f", in {failed}" if failed else ""
    return f"{name} failed on a batch of shape {_shapes_text(batch)}{place} ({reason})."


def _describe_signature_error(name: str, module: nn.Module, batch: Batch) -> str | None:
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
    except ValueError:  # built-in functions have no signature
        return None
    return None


def _shapes_text(batch: Batch) -> str:
    return " and ".join(map(_shape_text, flatten_tensors(batch)))


def _shape_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _find_failing_layer(module: nn.Module, batch: Batch) -> FailedLayer | None:
    running: list[tuple[str, nn.Module, Tensor | None]] = []
    handles: list[Any] = []

    def record(name: str, part: nn.Module, *given: Any) -> None:
        running.append((name, part, next(iter(flatten_tensors(given)), None)))

    args, kwargs = call_arguments(batch)
    with preserve_module(module), eager_with_gradients():
        for name, part in module.named_modules():
            if not isinstance(part, torch.jit.ScriptModule):
                handles.append(part.register_forward_pre_hook(partial(record, plain_name(name)), with_kwargs=True))
                handles.append(part.register_forward_hook(lambda *_: running.pop() and None))
        try:
            module(*clone_tensors(args), **clone_tensors(kwargs))
        except Exception:  # the error that is being explained
            name, part, tensor = running[-1] if running else ("", module, None)
            return FailedLayer(name, part, tensor) if tensor is not None else None
        finally:
            for handle in handles:
                handle.remove()
    return None


class InputExpectation(NamedTuple):
    """What layers of some classes take: a test for inputs that violate it, and the words for wanted and actual inputs.

    `option`: options of `initlab diagnose` that give the right input.
    """

    classes: Any
    violated: Callable[[Any, Tensor], bool]
    wanted: Callable[[Any], str]
    actual: Callable[[Tensor], str] = _shape_text
    option: Callable[[Any], str] | None = None


def _violated_expectation(module: nn.Module, tensor: Tensor) -> InputExpectation | None:
    shapes = {name: p.shape for name, p in own_parameters(module).items() if p is not None and not is_lazy(p)}
    if shape_mismatches(module, shapes):
        return None  # a subclass with other parameters may take other inputs
    rows = (row for row in _EXPECTATIONS if isinstance(module, row.classes))
    return next((row for row in rows if row.violated(module, tensor)), None)


def _last_axis(classes: Any, attribute: str) -> InputExpectation:
    return InputExpectation(
        classes,
        lambda m, t: t.dim() == 0 or t.shape[-1] != getattr(m, attribute),
        lambda m: f"{getattr(m, attribute)} numbers along the last axis",
    )


def _channels_differ(module: Any, tensor: Tensor) -> bool:
    rank = len(module.kernel_size) + 2
    return tensor.dim() not in (rank, rank - 1) or tensor.shape[1 - rank] != module.in_channels


def _invalid_index(module: Any, tensor: Tensor) -> bool:
    if tensor.is_floating_point():
        return True
    return tensor.numel() > 0 and not 0 <= int(tensor.min()) <= int(tensor.max()) < module.num_embeddings


def _range_text(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "fractions"
    lowest, highest = int(tensor.min()), int(tensor.max())
    return f"numbers up to {highest}" if lowest >= 0 else f"numbers from {lowest} to {highest}"


def _same_as_parameter(attribute: str, wanted: str, actual: str) -> InputExpectation:
    # The dtype or the device of a layer's first floating-point parameter.
    def own(module: Any) -> Any:
        parameters = (p for p in module.parameters(recurse=False) if p.is_floating_point())
        return next((getattr(p, attribute) for p in parameters), None)

    return InputExpectation(
        (nn.Linear, ConvNd, nn.RNNBase, nn.MultiheadAttention, nn.LayerNorm),
        lambda m, t: own(m) is not None and getattr(t, attribute) != own(m),
        lambda m: f"{wanted} {own(m)}",
        lambda t: f"{actual}{getattr(t, attribute)}",
    )


_EXPECTATIONS = (
    _last_axis(nn.Linear, "in_features"),
    InputExpectation(
        ConvNd,
        _channels_differ,
        lambda m: f"inputs Nx{m.in_channels}x{('L', 'HxW', 'DxHxW')[len(m.kernel_size) - 1]}",
    ),
    InputExpectation(
        (nn.Embedding, nn.EmbeddingBag),
        _invalid_index,
        lambda m: f"whole numbers below {m.num_embeddings}",
        _range_text,
        lambda m: f"--tokens {m.num_embeddings}",
    ),
    _last_axis(nn.RNNBase, "input_size"),
    _last_axis(nn.MultiheadAttention, "embed_dim"),
    InputExpectation(
        nn.LayerNorm,
        lambda m, t: tuple(t.shape[-len(m.normalized_shape) :]) != tuple(m.normalized_shape),
        lambda m: f"last axes of {'x'.join(map(str, m.normalized_shape))}",
    ),
    InputExpectation(
        BatchNorm,
        lambda m, t: m.training and t.dim() > 1 and t.numel() == t.shape[1],
        lambda m: "more than one value per channel in training mode",
        option=lambda m: "a larger --batch, or --eval",
    ),
    _same_as_parameter("dtype", "numbers of", ""),
    _same_as_parameter("device", "numbers on", "some on "),
)
