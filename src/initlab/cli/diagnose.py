"""`initlab diagnose`: import a model, run it on a batch, and print what is wrong with it."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from initlab.audit.formats import json_records
from initlab.cli.arguments import call_imported, load_callable, parse_integers, parse_pairs
from initlab.cli.diagnose_screen import print_diagnosis
from initlab.cli.output import write_csv
from initlab.diagnostics import Diagnosis, examine
from initlab.diagnostics.rules.judge import judge_network
from initlab.errors import UserError
from initlab.inspection.batch import flatten_tensors
from initlab.inspection.exceptions import raise_internal_error
from initlab.inspection.shape_errors import describe_forward_error
from initlab.system.escape import json_text, print
from initlab.system.imports import load_target
from initlab.system.random_streams import generator, seed_global_state

MAX_INPUT_NUMBERS, MAX_INPUTS = 2**20, 128
"""Most numbers in a batch and most inputs, where `--batch` does not set how many inputs there are."""

NUMBERS_PER_TOKEN = 512
"""Numbers that a token counts as, since an embedding turns it into about as many."""


def run_diagnose(
    target: str,
    shapes: Sequence[str],
    *,
    batch: int | None = None,
    tokens: int | None = None,
    targets: str | None = None,
    classes: int | None = None,
    arg: Sequence[str] | None = None,
    seed: int = 0,
    evaluate: bool = False,
    jacobian: bool | None = None,
    every: bool = False,
    as_json: bool = False,
    csv: str | None = None,
) -> None:
    """Diagnose a model, and print findings and table, or JSON.

    Args:
        target: as in `build_target`.
        shapes: as in `make_inputs`.
        batch: as in `make_inputs`.
        tokens: as in `make_inputs`.
        targets: `package.module:name` of the labels, or of a function of the inputs that returns them; None: random.
        classes: how many classes the output has logits for.
        arg: "key=value" for the callable.
        seed: of weights, inputs and random labels.
        evaluate: put the model into evaluation mode.
        jacobian: whether to measure the layers' Jacobians; None: where that is cheap.
        every: print a row for every layer.
        as_json: print JSON.
        csv: file that the measured rows are written to.

    Raises:
        UserError: the model cannot be built or run on these inputs, or the file cannot be written.
    """
    module = build_target(target, arg or (), seed)
    if evaluate:
        module.eval()
    inputs = make_inputs(shapes, batch, tokens, seed)
    labels = None if targets is None else load_tensors(targets, "--targets", inputs)
    try:
        diagnosis = examine(module, inputs, targets=labels, classes=classes, jacobian=jacobian, seed=seed)
    except UserError:
        raise
    except Exception as error:  # the model's own code may raise anything
        raise_internal_error(error, target)
        raise UserError(describe_forward_error(target, module, inputs, error)) from error
    findings = judge_network(diagnosis)
    write_csv(diagnosis.frame, csv)
    if as_json:
        verdicts = [asdict(finding) for finding in findings]
        print(json_text({"model": target, "verdicts": verdicts, "rows": json_records(diagnosis.frame)}))
    else:
        print_diagnosis(diagnosis_title(target, module, inputs, diagnosis), diagnosis, findings, every)


def build_target(target: str, pairs: Sequence[str], seed: int) -> nn.Module:
    """Return the module that `package.module:callable` is or returns.

    Args:
        target: what to import.
        pairs: "key=value" arguments of the callable.
        seed: of torch's, numpy's and Python's random state while it is called.

    Raises:
        UserError: it cannot be imported or called, or is no module.

    >>> build_target("torch.nn:Linear", ["in_features=2", "out_features=3"], seed=0)
    Linear(in_features=2, out_features=3, bias=True)
    """
    if ":" not in target:
        raise UserError(
            f"{target} names nothing to import: give package.module:callable, such as torchvision.models:resnet18, or "
            "mine:net for a function net in mine.py here."
        )
    keywords = parse_pairs(pairs, "--arg")
    found = load_callable(target, "target")
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UserError(
            f"{target} is a {type(found).__name__}: it must be a torch.nn.Module or a callable that returns one."
        )
    seed_global_state("made-up model", seed)
    module = call_imported(found, target, **keywords)
    if not isinstance(module, nn.Module):
        raise UserError(f"{target} returned {type(module).__name__}: it must return a torch.nn.Module.")
    return module


def make_inputs(shapes: Sequence[str], batch: int | None, tokens: int | None, seed: int) -> Any:
    """Return a batch: N(0, 1) of the shapes, whole numbers below `tokens`, or what `package.module:callable` returns.

    Args:
        shapes: one per input of the model, as in `parse_shape`, or a single `package.module:callable`.
        batch: how many inputs; None: as the first axis says, but where that is 1 a power of 2, at most 128 inputs and
            about 2²⁰ numbers.
        tokens: size of the vocabulary.
        seed: of the draws.

    Raises:
        UserError: a shape or a count cannot be.

    >>> make_inputs(["1,3,8,8"], batch=2, tokens=None, seed=0).shape
    torch.Size([2, 3, 8, 8])
    """
    if len(shapes) == 1 and ":" in shapes[0]:
        return load_tensors(shapes[0], "--input")
    sizes = [parse_shape(text) for text in shapes]
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch} must be at least 1.")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens {tokens} must be at least 1: the size of the vocabulary.")
    if all(size[0] == 1 for size in sizes) and batch is None:
        largest = max(math.prod(size) for size in sizes) * (1 if tokens is None else NUMBERS_PER_TOKEN)
        batch = 2 ** int(math.log2(max(2, min(MAX_INPUTS, MAX_INPUT_NUMBERS // largest))))
    stream = generator("made-up inputs", seed)
    inputs = []
    for size in sizes:
        shape = size if batch is None else (batch, *size[1:])
        if tokens is None:
            inputs.append(torch.randn(shape, generator=stream))
        else:
            inputs.append(torch.randint(tokens, shape, generator=stream))
    return inputs[0] if len(inputs) == 1 else inputs


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape: `1,3,224,224` or `1x3x224x224`.

    Raises:
        UserError: it is neither.
    """
    sizes = parse_integers(text.replace("x", ","))
    if not sizes:
        raise UserError(f"--input {text} is not a shape: give positive whole numbers such as 1,3,224,224.")
    return tuple(sizes)


def load_tensors(target: str, option: str, *arguments: Any) -> Any:
    """Return the tensors that `package.module:name` is, or returns when it is called with these arguments.

    Raises:
        UserError: it cannot be imported or called, or gives no tensors.
    """
    found = load_target(target, option)
    if callable(found) and not isinstance(found, nn.Module):
        found = call_imported(found, f"{option} {target}", *arguments)
    if not isinstance(found, (Tensor, tuple, list, dict)):
        raise UserError(f"{option} {target} gives a {type(found).__name__}: it must give tensors.")
    return found


def diagnosis_title(target: str, module: nn.Module, inputs: Any, diagnosis: Diagnosis) -> str:
    """Return one line about the model: parameters, shapes of the batch, mode and loss."""
    shapes = " and ".join("×".join(map(str, t.shape)) for t in flatten_tensors(inputs))
    facts = [
        target,
        f"{sum(p.numel() for p in module.parameters()):,} parameters",
        f"batch {shapes}",
        "training mode" if module.training else "evaluation mode",
    ]
    if diagnosis.loss is not None:
        chance = f" (ln {diagnosis.classes} = {math.log(diagnosis.classes):.3g})" if diagnosis.classes else ""
        facts.append(f"{diagnosis.objective} {diagnosis.loss:.3g}{chance}")
    return " · ".join(facts)
