"""`initlab.diagnose`: measure any module on one batch, and return the rows with findings."""

from collections.abc import Callable
from typing import Any

from torch import nn

from initlab.diagnostics.examine import examine
from initlab.diagnostics.frame import DiagnosisFrame
from initlab.diagnostics.rules.judge import judge_network
from initlab.inspection.batch import Batch
from initlab.inspection.shape_errors import explain_shape_errors


def diagnose(
    module: nn.Module,
    batch: Batch,
    targets: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    classes: int | None = None,
    jacobian: bool | None = None,
    seed: int = 0,
) -> DiagnosisFrame:
    """Measure every layer of any module on one batch, and find what is wrong with it.

    Layers are in order of execution; one that is called twice has two indices. A layer's preactivation is its output,
    or, where the module declares `weight_layers`, the input of the activation declared there. Activations are found
    whether they are modules or functions. The rows have the statistics of `initlab.diagnostics.STATS`, and `underflow`
    and `grad_underflow`, the number of entries that are too small for their precision; where a whole layer is lost, its
    values are those of a second pass in float64. Layer `(model)` has `loss` and, for cross-entropy, `ln_classes`, the
    loss of equal probabilities; `(input)` has the moments of the batch.

    Weights, `.grad`, buffers, training mode, hooks and the state of every random generator are left unchanged.

    Args:
        module: any module, on any device; it runs in the mode it is in.
        batch: its inputs: a tensor [B, …] of any dtype, a sequence of arguments, or a mapping of keywords.
        targets: integer labels or floating targets, random ones by default; with `loss`, what that takes.
        loss: `loss(output, targets)` or, without targets, `loss(output)`; by default cross-entropy or squared error.
        classes: take the output for logits of that many classes.
        jacobian: squared singular values of ∂h/∂input: None where they are cheap, True wherever they can be computed
            (the output's are estimated by iteration where it is large), False never.
        seed: of random targets and of the random numbers that the module draws.

    Returns:
        A frame with columns step, layer, index, stat, value, source. It shows the findings of `initlab diagnose` before
        its rows, in text and in a notebook; `frame.findings` has one row per finding, and `frame.attrs["findings"]` the
        same as plain values.

    Raises:
        UserError: a module without parameters, lazy or meta parameters, a batch that the module or one of its layers
            cannot take, targets that do not fit. Other errors of the module's own `forward` are raised as they are.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> nn.init.zeros_(net[0].weight) is None
    False
    >>> frame = diagnose(net, torch.randn(32, 8), torch.randint(3, (32,)))
    >>> frame.findings.name.tolist(), frame.findings.remedy[0][:23]
    (['zero_layer'], 'initialize it at random')
    >>> str(frame).splitlines()[0][:32]
    'fault    Layer 0 is all zeros: n'
    """
    with explain_shape_errors("the module", module, batch):
        diagnosis = examine(module, batch, targets, loss=loss, classes=classes, jacobian=jacobian, seed=seed)
    return DiagnosisFrame.of(diagnosis.frame, judge_network(diagnosis))
