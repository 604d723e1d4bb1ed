"""Checks before and after a procedure, and the mode in which it runs a module."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from initlab.errors import UserError
from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.initialize.request import require_module
from initlab.inspection import walk
from initlab.inspection.batch import flatten_tensors
from initlab.inspection.restore import preserve_generators, preserve_modes, preserve_values
from initlab.inspection.torch_internals import BatchNorm
from initlab.system.random_streams import seed_global_state


def require_values(module: nn.Module, record: Procedure) -> None:
    """Check that the module is a module whose parameters have values, whole ones.

    Raises:
        UserError: it is no module, or a parameter is on the meta device or sharded.
    """
    require_module(module)
    for parameter in walk(module):
        if parameter.tensor.is_meta:
            raise UserError(
                f"init={record.name} computes with values and {parameter.name} is on the meta device: "
                "call module.to_empty(device=…) or initialize it by a scheme first."
            )
        if hasattr(parameter.tensor, "full_tensor"):
            raise UserError(f"init={record.name} needs whole weights and {parameter.name} is sharded: shard it later.")


def check_data(context: ProcedureContext) -> None:
    """Check the batch.

    Raises:
        UserError: it is missing, not needed, too small or not finite.
    """
    name = context.procedure.name
    if "data" not in context.procedure.needs:
        if context.inputs is not None or context.targets is not None or context.loss is not None:
            raise UserError(f"init={name} uses no data: leave inputs, targets and loss out.")
        return
    tensors = flatten_tensors(context.inputs)
    if not tensors:
        kind = type(context.inputs).__name__
        given = "there are none" if context.inputs is None else f"inputs is a {kind} without a tensor"
        raise UserError(f"init={name} needs data and {given}: give inputs=batch, a tensor [B, …].")
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors):
        raise UserError(f"init={name} was given inputs that are not finite: leave those samples out.")
    if tensors[0].dim() == 0 or len(tensors[0]) < 2:
        raise UserError(f"init={name} was given a batch of one sample: give inputs=batch with at least 2.")


def check_finite(context: ProcedureContext) -> None:
    """Check that the procedure left every parameter finite.

    Raises:
        UserError: one is not.
    """
    for name, parameter in context.module.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach()).all()):
            raise UserError(
                f"init={context.procedure.name} left {name} not finite: the signal vanishes or explodes from its "
                "start, so begin from another scheme with init.base, or give another batch."
            )


@contextmanager
def procedure_mode(module: nn.Module, seed: int) -> Iterator[None]:
    """Put batch norms in training mode and all else in evaluation mode; restore modes, buffers and random state after.

    Random layers that the mode does not switch off draw from the global state, which is keyed by `seed`.
    """
    with preserve_generators(), preserve_values(*module.buffers()), preserve_modes(module):
        for part in module.modules():
            part.training = isinstance(part, BatchNorm)
        seed_global_state("procedure passes", seed, device=torch.device("cpu"))
        yield
