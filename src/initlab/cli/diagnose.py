"""`initlab diagnose`: import a model, feed it a batch, and say what is wrong with it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from initlab.cli.diagnose_screen import print_diagnosis
from initlab.diagnostics import Diagnosis, examine
from initlab.diagnostics.rules.judge import judge_network
from initlab.errors import UserError
from initlab.inspection.batch import flatten_tensors
from initlab.inspection.exceptions import call_user_code, raise_internal_error
from initlab.inspection.shape_errors import describe_forward_error
from initlab.report.findings.record import Finding
from initlab.system.escape import json_text, print
from initlab.system.imports import describe_exception, import_torchvision, load_target
from initlab.system.random_streams import generator, seed_global_state
from initlab.system.yaml_text import load_yaml

MAX_INPUT_NUMBERS, MAX_INPUTS = 2**20, 128
"""Numbers that a batch may hold and inputs that it may have at most, where nobody says how many inputs."""

NUMBERS_PER_TOKEN = 512
"""Numbers that a token counts for: an embedding makes so many of it."""


def run_diagnose(
    target: str,
    shapes: Sequence[str],
    *,
    batch: int | None = None,
    tokens: int | None = None,
    targets: str | None = None,
    classes: int | None = None,
    keywords: Sequence[str] = (),
    seed: int = 0,
    evaluate: bool = False,
    jacobian: bool | None = None,
    every: bool = False,
    as_json: bool = False,
    csv: str | None = None,
) -> None:
    """Diagnose the model that `target` names, and print verdicts and table, or JSON."""
    module = build_target(target, parse_build_arguments(keywords), seed)
    if evaluate:
        module.eval()
    inputs = make_inputs(shapes, batch, tokens, seed)
    labels = None if targets is None else load_tensors(targets, "--targets", inputs)
    try:
        found = examine(module, inputs, targets=labels, classes=classes, jacobian=jacobian, seed=seed)
    except UserError:
        raise
    except Exception as error:  # whatever the module's own code raises
        raise_internal_error(error, target)
        raise UserError(describe_forward_error(target, module, inputs, error)) from error
    verdicts = judge_network(found)
    if csv is not None:
        try:
            found.frame.to_csv(csv, index=False, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"--csv {csv} cannot be written ({error.strerror or error}).") from error
    if as_json:
        print(diagnosis_json(target, found, verdicts))
    else:
        print_diagnosis(diagnosis_title(target, module, inputs, found), found, verdicts, every)


def build_target(target: str, keywords: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the module that `package.module:callable` is or builds.

    Raises:
        UserError: it cannot be imported or called, or is no module.

    >>> build_target("torch.nn:Linear", {"in_features": 2, "out_features": 3}, seed=0)
    Linear(in_features=2, out_features=3, bias=True)
    """
    if ":" not in target:
        raise UserError(
            f"{target} names nothing to import: give package.module:callable, such as torchvision.models:resnet18, or "
            "mine:net for a function net in mine.py here."
        )
    if target.startswith("torchvision."):
        import_torchvision()
    found = load_target(target, "model")
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UserError(f"{target} is a {type(found).__name__}, no torch.nn.Module and no callable that builds one.")
    seed_global_state("made-up model", seed)
    try:
        module = call_user_code(found, **keywords)
    except Exception as error:  # whatever the user's own code raises
        raise_internal_error(error, target)
        remedy = ": give its arguments with --arg key=value." if isinstance(error, TypeError) else "."
        raise UserError(f"{target} failed when it was called ({describe_exception(error)}){remedy}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{target} returned {type(module).__name__}: it must return a torch.nn.Module.")
    return module


def parse_build_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return {"key": value} of "key=value" texts, the values read as YAML.

    >>> parse_build_arguments(["num_classes=10"])
    {'num_classes': 10}
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--arg {text} must be key=value.")
        try:
            found[key] = load_yaml(value)
        except ValueError as error:
            raise UserError(f"--arg {text}: the value cannot be read ({error}).") from error
    return found


def make_inputs(shapes: Sequence[str], batch: int | None, tokens: int | None, seed: int) -> Any:
    """Make a batch: N(0, 1) of the shapes given, whole numbers below `tokens`, or what `package.module:callable` gives.

    A first axis of 1 is the shape of one input: as many are drawn as make a batch (128, or 2²⁰ numbers, at most).

    >>> make_inputs(["1,3,8,8"], batch=2, tokens=None, seed=0).shape
    torch.Size([2, 3, 8, 8])
    """
    if len(shapes) == 1 and ":" in shapes[0]:
        return load_tensors(shapes[0], "--input", None)
    sizes = [parse_shape(text) for text in shapes]
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch} must be at least 1.")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens {tokens} must be at least 1: the size of the vocabulary.")
    if all(size[0] == 1 for size in sizes) and batch is None:
        largest = max(math.prod(size) for size in sizes) * (1 if tokens is None else NUMBERS_PER_TOKEN)
        batch = 2 ** int(math.log2(max(2, min(MAX_INPUTS, MAX_INPUT_NUMBERS // largest))))
    drawing = generator("made-up inputs", seed)
    made = []
    for size in sizes:
        whole = size if batch is None else (batch, *size[1:])
        if tokens is None:
            made.append(torch.randn(whole, generator=drawing))
        else:
            made.append(torch.randint(tokens, whole, generator=drawing))
    return made[0] if len(made) == 1 else made


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape: `1,3,224,224` or `1x3x224x224`."""
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or any(size < 1 for size in sizes):
        raise UserError(f"--input {text} is no shape: give positive whole numbers such as 1,3,224,224.")
    return sizes


def load_tensors(target: str, option: str, inputs: Any) -> Any:
    """Return what `package.module:name` holds, or gives when it is called (labels: with the inputs)."""
    found = load_target(target, option)
    if callable(found) and not isinstance(found, (Tensor, nn.Module)):
        try:
            found = call_user_code(found) if inputs is None else call_user_code(found, inputs)
        except Exception as error:  # whatever the user's own code raises
            raise_internal_error(error, target)
            raise UserError(f"{option} {target} failed when it was called ({describe_exception(error)}).") from error
    if not isinstance(found, (Tensor, tuple, list, dict)):
        raise UserError(f"{option} {target} gives a {type(found).__name__}: it must give tensors.")
    return found


def diagnosis_title(target: str, module: nn.Module, inputs: Any, found: Diagnosis) -> str:
    """Say in one line what was looked at."""
    shapes = " and ".join("×".join(map(str, t.shape)) for t in flatten_tensors(inputs))
    facts = [
        target,
        f"{sum(p.numel() for p in module.parameters()):,} parameters",
        f"batch {shapes}",
        "training mode" if module.training else "evaluation mode",
    ]
    if found.loss is not None:
        knows = f" (ln {found.classes} = {math.log(found.classes):.3g})" if found.classes else ""
        facts.append(f"{found.objective} {found.loss:.3g}{knows}")
    return " · ".join(facts)


def diagnosis_json(target: str, found: Diagnosis, verdicts: Sequence[Finding]) -> str:
    """Write verdicts and rows as JSON; what is no number there is null."""
    rows = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in found.frame.to_dict("records")
    ]
    listed = [
        {"severity": v.severity, "name": v.name, "layers": v.layers, "sentence": v.sentence, "remedy": v.remedy}
        for v in verdicts
    ]
    return json_text({"model": target, "verdicts": listed, "rows": rows})
