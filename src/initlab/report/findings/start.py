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
"""Layers of a residual network that a trend of its stream takes."""

DEPTH_LIMITING_CAUSES = {"signal_dies", "signal_explodes", "gradient_dies", "gradient_explodes", "inputs_alike"}
"""Causes that limit the depth to which a network can be trained."""

MASKING_CAUSES = {"overflow", "zero_layer"}
"""Causes that explain what signals and gradients do behind their layers."""


def find_start_causes(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Return what is wrong with a network at step 0, in the order of the layers.

    Args:
        layers: statistics of its layers in their order, the readout last.
        network: what else is known of it.

    >>> tanh = NetworkInfo(act="tanh", scheme="ones")
    >>> rows = [LayerStats("a", {"duplicate_units": 3.0}, units=4), LayerStats("b", {"duplicate_units": 1.0}, units=2)]
    >>> [(cause.name, cause.remedy) for cause in find_start_causes(rows, tanh)]
    [('copied_units', 'init=critical: random weights of mean 0, of the size that tanh needs')]
    """
    if not layers:
        return []
    causes = [
        *units.overflow_findings(layers, network),
        *units.zero_layer_findings(layers, network),
        *units.copied_unit_findings(layers, network),
        *units.saturation_findings(layers, network),
        *units.dead_unit_findings(layers, network),
    ]
    names = {cause.name for cause in causes}
    if not names & MASKING_CAUSES:
        causes += trend_findings(layers[:-1], network, names)
        causes += [*theory_notes(network, causes), *([] if causes else zero_gradient_findings(layers))]
    place = {layer.layer: index for index, layer in enumerate(layers)}
    end = len(layers)  # of causes without layers
    return sorted(causes, key=lambda cause: min((place.get(layer, 0) for layer in cause.layers), default=end))


def trend_findings(chain: Sequence[LayerStats], network: NetworkInfo, known: set[str]) -> list[Finding]:
    """Judge signal, gradient and correlation of hidden layers; `known`: names of causes found before."""
    if not network.plain:
        return residual_stream_findings(chain, network)
    if len(chain) < MIN_CHAIN:
        return []
    larger, smaller = network.rescaled("larger"), network.rescaled("smaller")
    alike = [] if "copied_units" in known else correlation_findings(chain, remedy=network.rescaled("other"))
    return [
        *signal_findings(chain, larger=larger, smaller=smaller),
        *gradient_findings(chain, larger=larger, smaller=smaller),
        *alike,
    ]


def residual_stream_findings(chain: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge whether a residual stream without norms explodes."""
    if network.norm != "none" or not network.model.startswith("res") or len(chain) < MIN_BLOCKS:
        return []
    first, last = chain[0], chain[-1]
    before, after = first.stats.get("q", math.nan), last.stats.get("q", math.nan)
    if not (0 < before < math.inf and after / before >= FAULT_FACTOR):
        return []
    text = (
        f"The residual stream explodes: its size grows {format_factor(math.sqrt(after / before))} from {first.layer} "
        f"to {last.layer}, because every branch adds in proportion to what the stream holds already."
    )
    return [Finding("fault", "stream_explodes", (first.layer, last.layer), text, network.around())]


def zero_gradient_findings(layers: Sequence[LayerStats]) -> list[Finding]:
    """Judge layers whose gradient is exactly zero, where no other cause is known."""
    zero = tuple(layer.layer for layer in layers if layer.stats.get("grad_mean_square") == 0)
    if not zero:
        return []
    text = f"No gradient reaches {name_layers(zero)}: it is exactly zero there, and these layers cannot learn."
    return [Finding("warning", "no_gradient", zero, text)]


def theory_notes(network: NetworkInfo, causes: Sequence[Finding]) -> list[Finding]:
    """Return a note where the depth that theory allows contradicts the causes: it is too small for none, or enough."""
    limit, depth = network.trainable_depth, network.depth
    if limit is None or depth is None or not network.plain:
        return []
    names = {cause.name for cause in causes if cause.severity != "note"}
    if limit < depth and not causes:
        text = (
            "Theory and measurement disagree: no layer breaks a bound at step 0, but by theory signals of this network "
            f"carry to about depth {limit:.0f} ({DEPTH_SCALES} ξ_c), and it has {depth} hidden layers."
        )
        return [Finding("note", "beyond_trainable_depth", (), text, network.rescaled("other"))]
    if limit >= depth and names & DEPTH_LIMITING_CAUSES:
        reach = f"to about depth {limit:.0f}" if math.isfinite(limit) else "to any depth"
        text = (
            f"Theory and measurement disagree: by its correlations alone ({DEPTH_SCALES} ξ_c) theory lets this network "
            f"train {reach}, and what its {depth} layers show ends sooner."
        )
        return [Finding("note", "within_trainable_depth", (), text)]
    return []
