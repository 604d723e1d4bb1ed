"""Passes through a module on its batch, and one in which every layer is adjusted before the next one is reached."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.initialize.procedures.record import ProcedureContext, RoleLayer
from initlab.inspection.batch import call_arguments, clone_tensors
from initlab.inspection.loss import compute_loss, main_output

Adjust = Callable[[ProcedureContext, RoleLayer, Callable[[], Tensor]], Any]


def run_on_batch(case: ProcedureContext) -> Any:
    """Run the module on its batch."""
    positional, keywords = call_arguments(clone_tensors(case.inputs))
    return case.module(*positional, **keywords)


def batch_loss(case: ProcedureContext, output: Any) -> Tensor:
    """Return the loss of an output on the batch's targets, drawn at random where there are none."""
    found = compute_loss(output, targets=case.targets, loss=case.loss, seed=case.seed)
    if found is None or main_output(output) is None:
        raise UserError(f"init={case.procedure.name} finds no loss in the output: give loss=function(output, targets).")
    return found.loss


def adjust_layers(case: ProcedureContext, adjust: Adjust) -> set[str]:
    """Call `adjust(case, layer, output)` for every weight layer when the forward pass reaches it; return their names.

    `output()` computes the layer's preactivation on the batch anew, with the weights as they are by then. The pass goes
    on with what the adjusted layer puts out, so layers come in the order of the computation, each once, and one pass
    does for all. Layers that the forward pass does not call as modules (packed attention) keep
    what the base gave them, and `case.unreached` names them.
    """
    owners = {id(layer.parameter.owner): layer for layer in case.layers if layer.parameter.kind != "embedding"}
    reached: set[str] = set()
    handles = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        layer = owners[id(module)]
        if layer.name in reached or not isinstance(output, Tensor):
            return None
        reached.add(layer.name)
        adjust(case, layer, lambda: module.forward(*args))
        return module.forward(*args)

    for layer in owners.values():
        handles.append(layer.parameter.owner.register_forward_hook(hook))
    try:
        with torch.no_grad():
            run_on_batch(case)
    finally:
        for handle in handles:
            handle.remove()
    case.unreached = [layer.name for layer in owners.values() if layer.name not in reached]
    return reached


def view_by_unit(output: Tensor, layer: RoleLayer) -> Tensor:
    """View a preactivation as [samples, units]: positions of a map are samples.

    >>> from initlab.inspection import walk
    >>> conv = next(walk(nn.Conv2d(3, 5, 1)))
    >>> view_by_unit(torch.zeros(2, 5, 4, 4), RoleLayer(conv, "hidden")).shape
    torch.Size([32, 5])
    """
    maps = layer.parameter.kind in ("conv", "transposed_conv")
    return (output.movedim(1, -1) if maps else output).reshape(-1, output.shape[1 if maps else -1])
