"""All rules in order: causes first, so that what follows from a named cause is not blamed a second time."""

import pandas as pd

from initlab.diagnostics.examine import INPUT, NETWORK, Diagnosis
from initlab.diagnostics.rules.signal import judge_chains
from initlab.diagnostics.rules.units import judge_unit_outputs
from initlab.diagnostics.rules.weights import judge_weight_values
from initlab.diagnostics.trace.records import Call
from initlab.report.findings.record import Finding, sort_findings
from initlab.report.findings.trends import MIN_CHAIN

CAUSES = (
    "nonfinite_weight",
    "zero_layer",
    "zero_readout",
    "copied_units",
    "out_of_scale",
    "overflow",
    "dead_units",
    "saturated_units",
)
"""Verdicts that explain what the signal does behind their layers."""

LARGE_INPUT = 100.0
"""Mean square of inputs that ought to have been normalised."""


def judge_network(found: Diagnosis | pd.DataFrame) -> list[Finding]:
    """Say in plain sentences what is wrong with an initialized network, worst first; [] where nothing is.

    Rules speak where theory has an answer or a count is plain: weights that are zero, copied, out of scale with their
    neighbours or scaled by the wrong fan; units that are dead or saturated; a signal, a gradient or a residual stream
    that grows or shrinks geometrically along layers that no norm comes between. Of norms, attention and layers that
    initlab does not know they say nothing.

    Args:
        found: what `initlab.diagnostics.examine` returned; or rows with the columns of `layers.csv` (those measured at
            the lowest step are read), from which only what units do can be told.

    >>> from torch import nn
    >>> import torch
    >>> from initlab.diagnostics import examine
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> nn.init.zeros_(net[0].weight) is None
    False
    >>> [v.name for v in judge_network(examine(net, torch.ones(8, 4)))]
    ['zero_layer']
    """
    if isinstance(found, pd.DataFrame):
        found = diagnosis_from_rows(found)
    weights = judge_weight_values(found)
    units = judge_unit_outputs(found)
    causes = [v for v in (*weights, *units) if v.name in CAUSES]
    # Equal weights and a stack that is saturated throughout say nothing of how signal and gradient change over layers.
    local = [
        v
        for v in causes
        if v.name != "copied_units" and not (v.name == "saturated_units" and len(v.layers) >= MIN_CHAIN)
    ]
    explained = frozenset(layer for v in local for layer in v.layers)
    return sort_findings(
        [*weights, *units, *judge_chains(found, explained, {v.name for v in causes}), *large_inputs(found)]
    )


def large_inputs(found: Diagnosis) -> list[Finding]:
    """Judge what the network is fed."""
    if not found.inputs.get("q", 0.0) > LARGE_INPUT:
        return []
    text = (
        f"The inputs are large: mean {found.inputs['mean']:.3g}, std {found.inputs['std']:.3g}. Schemes promise their "
        "scale for inputs of mean 0 and std 1."
    )
    return [Finding("warning", "loud_inputs", (INPUT,), text, "normalise the data: (x − mean) / std")]


def diagnosis_from_rows(frame: pd.DataFrame) -> Diagnosis:
    """Read measured rows back, as far as rows can tell."""
    rows = frame[frame["source"] == "measured"]
    rows = rows[rows["step"] == rows["step"].min()]
    calls = []
    for (index, layer), part in rows.groupby(["index", "layer"], sort=True):
        if layer not in (NETWORK, INPUT):
            stats = dict(zip(part["stat"], part["value"].astype(float), strict=True))
            calls.append(Call(int(index), str(layer), None, stats=stats))
    return Diagnosis(frame, calls, [])
