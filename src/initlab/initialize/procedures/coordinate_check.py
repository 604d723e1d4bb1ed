"""The coordinate check: do a network's preactivations change as much at every width?"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from initlab.diagnostics import layer_probes
from initlab.errors import UserError
from initlab.initialize.procedures.engine import initialize_, rates
from initlab.inspection.loss import compute_loss
from initlab.inspection.shape_errors import explain_shape_errors
from initlab.models import build as build_model
from initlab.system.random_streams import generator

MAX_FLAT_SLOPE = 0.25
"""Largest slope of log size over log width that counts as flat: µP has 0, a wrong exponent is ½ or 1 off."""


def coordinate_check(
    scheme: Any = "mup",
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    build: Callable[[int], nn.Module] | None = None,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    act: Any = "relu",
    optimizer: str = "adam",
    lr: float = 0.001,
    steps: int = 3,
    seeds: Sequence[int] = (0,),
    parameters: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train networks of several widths for a few steps and measure how much every layer's preactivations change.

    The size is the mean of |h_t − h_0| over samples and units. Under µP it does not depend on the width; where it
    grows, wide networks diverge at a rate that suits narrow ones, and where it shrinks, their layers do not learn.
    Source: Yang et al. 2022, "Tensor Programs V", section D.1.

    Args:
        scheme: a scheme or procedure by name or record, with its `parameters`.
        widths: at least two; the narrowest is the base width where the scheme has one and `parameters` name none.
        build: width -> module; default: an mlp of three hidden layers.
        inputs: a batch [B, …]; default: 64 Gaussian samples of 32 features.
        targets: its labels [B] or values; default: random labels of 10 classes.
        act: activation of the modules.
        optimizer: sgd (no momentum) or adam.
        lr: the rate at the base width.
        steps: number of updates.
        seeds: init seeds, over which sizes are averaged.
        parameters: the scheme's own.

    Returns:
        A frame with columns width, step, layer, index, size; `attrs["slopes"]`: {layer: d log size / d log width after
        the last step}, `attrs["flat"]`, and `attrs["verdict"]`, one sentence.

    Raises:
        UserError: fewer than two widths, an unknown optimizer, a batch that the modules cannot take, what `initialize_`
            refuses.

    >>> frame = coordinate_check("mup", widths=(32, 64), steps=1)
    >>> sorted(frame.columns)
    ['index', 'layer', 'size', 'step', 'width']
    """
    _check_arguments(widths, build, inputs, optimizer, lr, steps, seeds)
    random = generator("coordinate check")
    x = torch.randn(64, 32, generator=random) if inputs is None else inputs
    y = torch.randint(10, (len(x),), generator=random) if targets is None else targets
    own = dict(parameters or {})
    if scheme == "mup":
        own.setdefault("base_width", min(widths))
    make_optimizer: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]

    def measure(module: nn.Module, seed: int) -> dict[tuple[int, str, int], float]:
        initialize_(module, scheme, act=act, seed=seed, parameters=own)
        factors = rates(module, scheme, optimizer, **own)
        groups = [{"params": [p], "lr": lr * factors.get(name, 1.0)} for name, p in module.named_parameters()]
        updates, start = make_optimizer(groups, lr=lr), _preactivations(module, x)
        sizes = {}
        for step in range(1, steps + 1):
            objective = compute_loss(module(x), targets=y)
            assert objective is not None
            updates.zero_grad()
            objective.loss.backward()
            updates.step()
            for (layer, index), h in _preactivations(module, x).items():
                sizes[step, layer, index] = float((h - start[layer, index]).abs().mean())
        return sizes

    rows = []
    for width in widths:
        measured = []
        for seed in seeds:
            if build is None:
                shape = x.shape[1:]
                module = build_model("mlp", depth=3, width=width, act=act, input_shape=shape, classes=10)
            else:
                module = build(width)
            if not isinstance(module, nn.Module):
                raise UserError(f"build({width}) returned {type(module).__name__}: it must return a torch.nn.Module.")
            with explain_shape_errors(f"what build({width}) returned" if build else "the mlp", module, x):
                measured.append(measure(module, seed))
        rows += [(width, *key, sum(sizes[key] for sizes in measured) / len(measured)) for key in measured[0]]
    frame = pd.DataFrame(rows, columns=["width", "step", "layer", "index", "size"])
    return _add_verdict(frame, str(getattr(scheme, "name", scheme)))


def _check_arguments(widths: Any, build: Any, inputs: Any, optimizer: str, lr: Any, steps: Any, seeds: Any) -> None:
    collection = isinstance(widths, Collection)
    if not collection or len(set(widths)) < 2:
        given = list(widths) if collection else widths
        raise UserError(f"widths={given} must be at least two different ones, for example (64, 128, 256, 512).")
    if not isinstance(seeds, Collection) or len(seeds) == 0:
        raise UserError(f"seeds={seeds!r} must be at least one seed in a tuple, for example (0,) or range(3).")
    if build is not None and (isinstance(build, nn.Module) or not callable(build)):
        raise UserError(
            f"build is a {type(build).__name__}: it must be a function that takes a width and returns a module."
        )
    if inputs is not None and not isinstance(inputs, Tensor):
        raise UserError(f"inputs is a {type(inputs).__name__}: give inputs=batch, a tensor [B, …].")
    if optimizer not in ("sgd", "adam"):
        raise UserError(f"optimizer={optimizer} must be sgd or adam.")
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 <= lr < math.inf:
        raise UserError(f"lr={lr} must be a finite number of at least 0, for example lr=0.001.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps={steps} must be a whole number of at least 1 update.")


def _preactivations(module: nn.Module, x: Tensor) -> dict[tuple[str, int], Tensor]:
    found: dict[tuple[str, int], Tensor] = {}
    handles = [
        probe.module.register_forward_hook(
            lambda m, args, out, key=(probe.layer.name, probe.index): found.update({key: out.detach().double()})
        )
        for probe in layer_probes(module)
    ]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _add_verdict(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    last = frame[frame.step == frame.step.max()]
    slopes = {}
    for layer, rows in last.groupby("layer", sort=False):
        logs = [math.log(size) if 0 < size < math.inf else math.nan for size in rows["size"]]
        x, y = np.log(rows.width) - np.log(rows.width).mean(), np.array(logs)
        slopes[str(layer)] = float(x @ y / (x @ x))
    steepest = max(slopes, key=lambda layer: math.inf if math.isnan(slopes[layer]) else abs(slopes[layer]))
    slope = slopes[steepest]
    flat = all(abs(each) <= MAX_FLAT_SLOPE for each in slopes.values())
    span = f"widths {frame.width.min()} to {frame.width.max()}"
    if flat:
        verdict = f"{name}: flat over {span}: every layer moves as far (largest slope {slope:+.2f}, {steepest})."
    else:
        verdict = (
            f"{name}: not flat over {span}: what {steepest} moves {'grows' if slope > 0 else 'shrinks'} as "
            f"width^{slope:+.2f}, so a rate tuned at one width does not suit another; use init=mup with the rates it "
            "implies."
        )
    frame.attrs |= {"slopes": slopes, "flat": flat, "verdict": verdict}
    return frame
