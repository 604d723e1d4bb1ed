"""All rules in order: causes first, so that what follows from a named cause is not blamed a second time."""

from initlab.diagnostics.examine import INPUT, Diagnosis
from initlab.diagnostics.rules.signal import judge_chains
from initlab.diagnostics.rules.units import judge_unit_outputs
from initlab.diagnostics.rules.weights import judge_weight_values
from initlab.report.findings.record import Finding, sort_findings
from initlab.report.findings.trends import MIN_CHAIN

LOCAL_CAUSES = ("nonfinite_weight", "zero_layer", "zero_readout", "out_of_scale", "overflow", "dead_units")
CAUSES = (*LOCAL_CAUSES, "copied_units", "saturated_units")
"""Findings that explain what the signal does behind their layers."""

LARGE_INPUT = 100.0
"""Mean square of inputs that are not normalized."""


def judge_network(diagnosis: Diagnosis) -> list[Finding]:
    """Return what is wrong with an initialized network, worst first; [] where nothing is.

    Rules apply where theory has an answer or a count is plain: weights that are zero, copied, out of scale with their
    neighbors or scaled by the wrong fan; units that are dead or saturated; a signal, a gradient or a residual stream
    that grows or shrinks geometrically along layers without norms between them. Norms, attention and layers that
    initlab does not know are not judged.

    >>> from torch import nn
    >>> import torch
    >>> from initlab.diagnostics import examine
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> nn.init.zeros_(net[0].weight) is None
    False
    >>> [finding.name for finding in judge_network(examine(net, torch.ones(8, 4)))]
    ['zero_layer']
    """
    local = [*judge_weight_values(diagnosis), *judge_unit_outputs(diagnosis.calls)]
    # Equal weights, or saturation in all of a chain, do not explain how signal and gradient change over its layers.
    explained = frozenset(
        layer
        for one in local
        if one.name in LOCAL_CAUSES or (one.name == "saturated_units" and len(one.layers) < MIN_CHAIN)
        for layer in one.layers
    )
    causes = {one.name for one in local if one.name in CAUSES}
    return sort_findings([*local, *judge_chains(diagnosis, explained, causes), *large_inputs(diagnosis)])


def large_inputs(diagnosis: Diagnosis) -> list[Finding]:
    """Judge the inputs of the network."""
    inputs = diagnosis.inputs
    if not inputs.get("q", 0.0) > LARGE_INPUT:
        return []
    text = (
        f"The inputs are large: mean {inputs['mean']:.3g}, std {inputs['std']:.3g}. Schemes promise their scale for "
        "inputs of mean 0 and std 1."
    )
    return [Finding("warning", "loud_inputs", (INPUT,), text, "normalize the data: (x − mean) / std")]
