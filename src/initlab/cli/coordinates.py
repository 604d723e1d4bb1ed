"""`initlab coordinates`: the coordinate check from the command line."""

import torch

from initlab.cli.arguments import parse_integers
from initlab.errors import UserError
from initlab.initialize.procedures.coordinate_check import coordinate_check
from initlab.system.escape import json_text, print, printable
from initlab.system.imports import load_target
from initlab.system.random_streams import generator


def run_coordinates(
    target: str | None,
    *,
    init: str,
    widths: str,
    shape: str | None,
    act: str,
    optimizer: str,
    lr: float,
    steps: int,
    seeds: int,
    as_json: bool,
) -> int:
    """Print how far every layer moves at every width, and the verdict; return 0 where it is flat, else 1.

    Args:
        target: `package.module:function` that takes a width and returns a module; None: an mlp.
        init: the scheme.
        widths: whole numbers joined by commas.
        shape: of the batch, as in `64,32`.
        act: the activation.
        optimizer: sgd or adam.
        lr: the rate at the base width.
        steps: updates before layers are compared.
        seeds: networks of each width.
        as_json: print JSON.

    Raises:
        UserError: an option cannot be.
    """
    if target is not None and target.isdigit():
        raise UserError(f"--widths takes numbers joined by commas, without blanks: --widths {widths},{target}.")
    build = None if target is None else load_target(target, "target")
    if target is not None and shape is None:
        raise UserError(f"{target} needs a batch: give its shape, such as --input 64,32.")
    if seeds < 1:
        raise UserError(f"--seeds {seeds} must be at least 1.")
    for option, text in (("--input", shape), ("--widths", widths)):
        if text is not None and not parse_integers(text):
            raise UserError(f"{option}={text} must be positive whole numbers with commas between them, such as 64,128.")
    stream = generator("coordinate inputs")
    frame = coordinate_check(
        init,
        widths=parse_integers(widths),
        build=build,
        inputs=None if shape is None else torch.randn(parse_integers(shape), generator=stream),
        act=act,
        optimizer=optimizer,
        lr=lr,
        steps=steps,
        seeds=range(seeds),
    )
    last = frame[frame.step == frame.step.max()]
    if as_json:
        rows = last[["width", "layer", "size"]].to_dict("records")
        print(json_text({**{k: frame.attrs[k] for k in ("verdict", "flat", "slopes")}, "rows": rows}))
    else:
        table = last.pivot_table(index="layer", columns="width", values="size", sort=False)
        table["slope"] = [frame.attrs["slopes"][layer] for layer in table.index]
        table.index = table.index.map(printable)
        print(f"mean |h_t − h_0| after {steps} steps\n{table.to_string(float_format='{:.3g}'.format)}\n")
        print(frame.attrs["verdict"])
    return 0 if frame.attrs["flat"] else 1
