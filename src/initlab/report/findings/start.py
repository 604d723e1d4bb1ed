"""Causes that rows of step 0 show, measured or predicted, in the order of the layers."""

import math
from collections.abc import Sequence

from initlab.report.findings import units
from initlab.report.findings.network import Network, Reading
from initlab.report.findings.record import Verdict, listed, power_of_ten
from initlab.report.findings.trends import FAULTS, LONG, SCALES, alike, gradient, signal

BLOCKS = 4
"""Layers of a residual network from which on its stream has a trend."""

ENDS = {"signal_dies", "signal_explodes", "gradient_dies", "gradient_explodes", "inputs_alike"}
"""Causes that end what a network can be trained to."""

HIDE = {"overflow", "zero_layer"}
"""Causes that explain what signals and gradients do behind their layers."""


def of_start(layers: Sequence[Reading], network: Network) -> list[Verdict]:
    """Say what is wrong with a network at step 0, from rows of its layers in order, the readout last.

    >>> tanh = Network(act="tanh", scheme="ones")
    >>> rows = [Reading("a", {"duplicate_units": 3.0}, units=4), Reading("b", {"duplicate_units": 1.0}, units=2)]
    >>> [(v.name, v.remedy) for v in of_start(rows, tanh)]
    [('copied_units', 'init=critical: random weights of mean 0, of the size that tanh needs')]
    """
    if not layers:
        return []
    found = [
        *units.overflow(layers, network),
        *units.zeros(layers, network),
        *units.copies(layers, network),
        *units.saturated(layers, network),
        *units.dead(layers, network),
    ]
    names = {verdict.name for verdict in found}
    if not names & HIDE:
        found += trends(layers[:-1], network, names)
        found += [*silent(layers), *beyond(network)] if not found else within(network, found)
    place = {one.layer: index for index, one in enumerate(layers)}
    end = len(layers)  # of what is about the whole network
    return sorted(found, key=lambda verdict: min((place.get(layer, 0) for layer in verdict.layers), default=end))


def trends(chain: Sequence[Reading], network: Network, found: set[str]) -> list[Verdict]:
    """Judge signal, gradient and correlation of hidden layers; `found`: causes that are known already."""
    if not network.plain:
        return stream(chain, network)
    if len(chain) < LONG:
        return []
    larger, smaller = network.rescaled("larger"), network.rescaled("smaller")
    same = [] if "copied_units" in found else alike(chain, remedy=network.rescaled("other"))
    return [
        *signal(chain, larger=larger, smaller=smaller),
        *gradient(chain, larger=larger, smaller=smaller),
        *same,
    ]


def stream(chain: Sequence[Reading], network: Network) -> list[Verdict]:
    """Judge whether a residual stream without norms explodes."""
    if network.norm != "none" or not network.model.startswith("res") or len(chain) < BLOCKS:
        return []
    q = [one.stats.get("q", math.nan) for one in (chain[0], chain[-1])]
    if not (0 < q[0] < math.inf and q[1] / q[0] >= FAULTS):
        return []
    text = (
        f"The residual stream explodes: its size grows {power_of_ten(math.sqrt(q[1] / q[0]))} from {chain[0].layer} to "
        f"{chain[-1].layer}, because every branch adds in proportion to what the stream holds already."
    )
    return [Verdict("fault", "stream_explodes", (chain[0].layer, chain[-1].layer), text, network.around())]


def silent(layers: Sequence[Reading]) -> list[Verdict]:
    """Judge layers whose gradient is exactly zero for no other reason that is known."""
    zero = tuple(one.layer for one in layers if one.stats.get("grad_mean_square") == 0)
    if not zero:
        return []
    text = f"No gradient reaches {listed(zero)}: it is exactly zero there, and these layers cannot learn."
    return [Verdict("warning", "no_gradient", zero, text)]


def within(network: Network, found: Sequence[Verdict]) -> list[Verdict]:
    """Say that theory gives a network its depth by correlations alone, although layers break a bound."""
    limit, depth = network.trainable_depth, network.depth
    names = {verdict.name for verdict in found if verdict.severity != "note"}
    if limit is None or depth is None or limit < depth or not network.plain or not names & ENDS:
        return []
    reach = f"to about depth {limit:.0f}" if math.isfinite(limit) else "to any depth"
    text = (
        f"Theory and measurement disagree: by its correlations alone ({SCALES} ξ_c) theory lets this network train "
        f"{reach}, and what its {depth} layers show ends sooner."
    )
    return [Verdict("note", "within_trainable_depth", (), text)]


def beyond(network: Network) -> list[Verdict]:
    """Say that theory gives a network less depth than it has, although no layer breaks a bound."""
    limit, depth = network.trainable_depth, network.depth
    if limit is None or depth is None or not limit < depth or not network.plain:
        return []
    text = (
        f"Theory and measurement disagree: no layer breaks a bound at step 0, but by theory signals of this network "
        f"carry to about depth {limit:.0f} ({SCALES} ξ_c), and it has {depth} hidden layers."
    )
    return [Verdict("note", "beyond_trainable_depth", (), text, network.rescaled("other"))]
