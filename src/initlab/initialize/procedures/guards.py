"""What is checked before a procedure looks at a module, and what is put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from initlab.errors import UserError
from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.initialize.request import require_module
from initlab.inspection import walk
from initlab.inspection.batch import flatten_tensors
from initlab.system.random_streams import seed_global_state


def require_values(module: nn.Module, found: Procedure) -> None:
    """Refuse what is no module, and parameters without values of their own, or with a part of them."""
    require_module(module)
    for parameter in walk(module):
        if parameter.tensor.is_meta:
            raise UserError(
                f"init={found.name} computes with values and {parameter.name} is on the meta device: "
                "call module.to_empty(device=…) or initialize it by a scheme first."
            )
        if hasattr(parameter.tensor, "full_tensor"):
            raise UserError(
                f"init={found.name} looks at whole weights and {parameter.name} is sharded: shard it later."
            )


def check_data(case: ProcedureContext) -> None:
    """Refuse a batch that is missing, not wanted, empty or not finite."""
    name = case.procedure.name
    if "data" not in case.procedure.needs:
        if case.inputs is not None or case.targets is not None or case.loss is not None:
            raise UserError(f"init={name} looks at no data: leave inputs, targets and loss out.")
        return
    tensors = flatten_tensors(case.inputs)
    if not tensors:
        given = (
            "there are none" if case.inputs is None else f"inputs is a {type(case.inputs).__name__} without a tensor"
        )
        raise UserError(f"init={name} looks at data and {given}: give inputs=batch, a tensor [B, …].")
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors):
        raise UserError(f"init={name} was given inputs that are not finite: leave those samples out.")
    if tensors[0].dim() == 0 or len(tensors[0]) < 2:
        raise UserError(f"init={name} was given a batch of one sample: give inputs=batch with at least 2.")


def check_finite(case: ProcedureContext) -> None:
    """Refuse what came out where it is not finite."""
    for name, parameter in case.module.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach()).all()):
            raise UserError(
                f"init={case.procedure.name} left {name} not finite: the signal vanishes or explodes from its start, "
                "so begin from another scheme with init.base, or give another batch."
            )


@contextmanager
def rollback_on_error(module: nn.Module) -> Iterator[None]:
    """Put all values and modes back when anything goes wrong."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.detach().copy_(value)
        raise


@contextmanager
def temporary_modes(module: nn.Module, seed: int) -> Iterator[None]:
    """Let passes only look: running statistics and modes come back; batch norms see the batch, dropout is off."""
    modes = [(part, part.training) for part in module.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for part, _ in modes:
        part.training = isinstance(part, nn.modules.batchnorm._BatchNorm)
    try:
        # Random layers that dropout's mode does not reach draw from the global state, which stays as it was.
        with torch.random.fork_rng(devices=[]):
            seed_global_state("procedure passes", seed, device=torch.device("cpu"))
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, needed in frozen:
            parameter.requires_grad_(needed)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
