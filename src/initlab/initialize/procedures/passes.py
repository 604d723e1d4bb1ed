"""Run a module on its batch, and adjust every layer before the pass reaches the next one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.initialize.procedures.record import ProcedureContext, RoleLayer
from initlab.inspection.batch import call_arguments, clone_tensors
from initlab.inspection.loss import compute_loss, main_output

Adjust = Callable[[ProcedureContext, RoleLayer, Callable[[], Tensor]], Any]


def run_on_batch(context: ProcedureContext) -> Any:
    """Run the module on its batch, and return its output."""
    positional, keywords = call_arguments(clone_tensors(context.inputs))
    return context.module(*positional, **keywords)


def batch_loss(context: ProcedureContext, output: Any) -> Tensor:
    """Return the loss of an output on the batch's targets, which are random where there are none.

    Raises:
        UserError: the output has no floating-point tensor.
    """
    objective = compute_loss(output, targets=context.targets, loss=context.loss, seed=context.seed)
    if objective is None or main_output(output) is None:
        name = context.procedure.name
        raise UserError(f"init={name} finds no loss in the output: give loss=function(output, targets).")
    return objective.loss


def adjust_layers(context: ProcedureContext, adjust: Adjust) -> set[str]:
    """Call `adjust(context, layer, output)` for every weight layer when a forward pass reaches it; return their names.

    `output()` computes the layer's preactivation on the batch with its current weights. The pass goes on with the
    output of the adjusted layer, so one pass adjusts all layers in the order of the computation, each once. Layers
    that the forward pass does not call as modules (packed attention) keep the values of the base scheme, and
    `context.unreached` names them.

    Args:
        context: the module and its batch.
        adjust: changes the layer's weights.
    """
    owners = {id(layer.parameter.owner): layer for layer in context.layers if layer.parameter.kind != "embedding"}
    reached: set[str] = set()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        layer = owners[id(module)]
        if layer.name in reached or not isinstance(output, Tensor):
            return None
        reached.add(layer.name)
        adjust(context, layer, lambda: module.forward(*args))
        return module.forward(*args)

    handles = [layer.parameter.owner.register_forward_hook(hook) for layer in owners.values()]
    try:
        with torch.no_grad():
            run_on_batch(context)
    finally:
        for handle in handles:
            handle.remove()
    context.unreached = [layer.name for layer in owners.values() if layer.name not in reached]
    return reached


def view_by_unit(output: Tensor, layer: RoleLayer) -> Tensor:
    """View a preactivation as [samples, units]; the positions of a map count as samples.

    >>> from initlab.inspection import walk
    >>> conv = next(walk(nn.Conv2d(3, 5, 1)))
    >>> view_by_unit(torch.zeros(2, 5, 4, 4), RoleLayer(conv, "hidden")).shape
    torch.Size([32, 5])
    """
    maps = layer.parameter.kind in ("conv", "transposed_conv")
    return (output.movedim(1, -1) if maps else output).reshape(-1, output.shape[1 if maps else -1])
