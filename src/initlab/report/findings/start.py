"""Causes that rows of step 0 show, measured or predicted, in the order of the layers."""

import math
from collections.abc import Sequence

from initlab.report.findings import units
from initlab.report.findings.network import LayerStats, NetworkInfo
from initlab.report.findings.record import Finding, format_factor, name_layers
from initlab.report.findings.trends import (
    DEPTH_SCALES,
    FAULT_FACTOR,
    MIN_CHAIN,
    correlation_findings,
    gradient_findings,
    signal_findings,
)

MIN_BLOCKS = 4
"""Layers of a residual network from which on its stream has a trend."""

DEPTH_LIMITING_CAUSES = {"signal_dies", "signal_explodes", "gradient_dies", "gradient_explodes", "inputs_alike"}
"""Causes that end what a network can be trained to."""

MASKING_CAUSES = {"overflow", "zero_layer"}
"""Causes that explain what signals and gradients do behind their layers."""


def find_start_causes(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Say what is wrong with a network at step 0, from rows of its layers in order, the readout last.

    >>> tanh = NetworkInfo(act="tanh", scheme="ones")
    >>> rows = [LayerStats("a", {"duplicate_units": 3.0}, units=4), LayerStats("b", {"duplicate_units": 1.0}, units=2)]
    >>> [(v.name, v.remedy) for v in find_start_causes(rows, tanh)]
    [('copied_units', 'init=critical: random weights of mean 0, of the size that tanh needs')]
    """
    if not layers:
        return []
    found = [
        *units.overflow_findings(layers, network),
        *units.zero_layer_findings(layers, network),
        *units.copied_unit_findings(layers, network),
        *units.saturation_findings(layers, network),
        *units.dead_unit_findings(layers, network),
    ]
    names = {verdict.name for verdict in found}
    if not names & MASKING_CAUSES:
        found += trend_findings(layers[:-1], network, names)
        found += (
            [*zero_gradient_findings(layers), *shallower_in_theory_findings(network)]
            if not found
            else deeper_in_theory_findings(network, found)
        )
    place = {one.layer: index for index, one in enumerate(layers)}
    end = len(layers)  # of what is about the whole network
    return sorted(found, key=lambda verdict: min((place.get(layer, 0) for layer in verdict.layers), default=end))


def trend_findings(chain: Sequence[LayerStats], network: NetworkInfo, found: set[str]) -> list[Finding]:
    """Judge signal, gradient and correlation of hidden layers; `found`: causes that are known already."""
    if not network.plain:
        return residual_stream_findings(chain, network)
    if len(chain) < MIN_CHAIN:
        return []
    larger, smaller = network.rescaled("larger"), network.rescaled("smaller")
    same = [] if "copied_units" in found else correlation_findings(chain, remedy=network.rescaled("other"))
    return [
        *signal_findings(chain, larger=larger, smaller=smaller),
        *gradient_findings(chain, larger=larger, smaller=smaller),
        *same,
    ]


def residual_stream_findings(chain: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge whether a residual stream without norms explodes."""
    if network.norm != "none" or not network.model.startswith("res") or len(chain) < MIN_BLOCKS:
        return []
    q = [one.stats.get("q", math.nan) for one in (chain[0], chain[-1])]
    if not (0 < q[0] < math.inf and q[1] / q[0] >= FAULT_FACTOR):
        return []
    text = (
        f"The residual stream explodes: its size grows {format_factor(math.sqrt(q[1] / q[0]))} from {chain[0].layer} to "
        f"{chain[-1].layer}, because every branch adds in proportion to what the stream holds already."
    )
    return [Finding("fault", "stream_explodes", (chain[0].layer, chain[-1].layer), text, network.around())]


def zero_gradient_findings(layers: Sequence[LayerStats]) -> list[Finding]:
    """Judge layers whose gradient is exactly zero for no other reason that is known."""
    zero = tuple(one.layer for one in layers if one.stats.get("grad_mean_square") == 0)
    if not zero:
        return []
    text = f"No gradient reaches {name_layers(zero)}: it is exactly zero there, and these layers cannot learn."
    return [Finding("warning", "no_gradient", zero, text)]


def deeper_in_theory_findings(network: NetworkInfo, found: Sequence[Finding]) -> list[Finding]:
    """Say that theory gives a network its depth by correlations alone, although layers break a bound."""
    limit, depth = network.trainable_depth, network.depth
    names = {verdict.name for verdict in found if verdict.severity != "note"}
    if limit is None or depth is None or limit < depth or not network.plain or not names & DEPTH_LIMITING_CAUSES:
        return []
    reach = f"to about depth {limit:.0f}" if math.isfinite(limit) else "to any depth"
    text = (
        f"Theory and measurement disagree: by its correlations alone ({DEPTH_SCALES} ξ_c) theory lets this network train "
        f"{reach}, and what its {depth} layers show ends sooner."
    )
    return [Finding("note", "within_trainable_depth", (), text)]


def shallower_in_theory_findings(network: NetworkInfo) -> list[Finding]:
    """Say that theory gives a network less depth than it has, although no layer breaks a bound."""
    limit, depth = network.trainable_depth, network.depth
    if limit is None or depth is None or not limit < depth or not network.plain:
        return []
    text = (
        f"Theory and measurement disagree: no layer breaks a bound at step 0, but by theory signals of this network "
        f"carry to about depth {limit:.0f} ({DEPTH_SCALES} ξ_c), and it has {depth} hidden layers."
    )
    return [Finding("note", "beyond_trainable_depth", (), text, network.rescaled("other"))]
