"""What keeps a forecast network from training: the rules of `report.findings` on predicted rows and promised laws."""

from collections.abc import Mapping, Sequence

import pandas as pd

from initlab.report.findings import Network, Reading, Verdict, of_start
from initlab.report.findings.units import off_centre
from initlab.theory.nodes import Branch, Layer, Node, layers_of
from initlab.theory.read_module import Drawn


def expected_causes(
    nodes: Sequence[Node], frame: pd.DataFrame, drawn: Mapping[str, Drawn], network: Network
) -> list[Verdict]:
    """Return the causes that predicted rows show, and those that the laws of the weights alone do.

    Where the law of a layer has a mean, theory has no rows, and the mean tells what becomes of the signal.

    >>> nodes = [Layer(name, 784, 128, 0.0) for name in "abc"]
    >>> frame = pd.DataFrame(columns=["layer", "index", "stat", "value"])
    >>> ones = dict.fromkeys("abc", Drawn(0.0, mean=1.0, known=False))
    >>> [verdict.name for verdict in expected_causes(nodes, frame, ones, Network(act="tanh", scheme="ones"))]
    ['copied_units', 'weights_off_centre']
    """
    named = dict(iter(frame.groupby("layer")))
    chain = [node.layers[0] for node in nodes if isinstance(node, Branch)]
    residual = bool(chain)
    chain = chain or layers_of(nodes)
    readings = [_reading(layer, named.get(layer.name), drawn.get(layer.name)) for layer in chain]
    if residual or chain[-1].act is not None:
        readings.append(Reading("(readout)"))
    found = of_start(readings, network)
    if {verdict.name for verdict in found} & {"signal_explodes", "saturated_units", "zero_layer"}:
        return found
    laws = [(layer, drawn[layer.name]) for layer in chain if layer.name in drawn]
    pushed = [(layer.name, law.mean, layer.fan_in) for layer, law in laws if _pushed(law, layer.fan_in)]
    return [*found, *off_centre(pushed, network)]


def _pushed(law: Drawn, fan_in: float) -> bool:
    # Sums of fan_in products with a mean m grow as m·fan_in, those of independent ones as their root.
    return law.mean != 0 and law.mean**2 * fan_in > law.variance and abs(law.mean) * fan_in > 1


def _reading(layer: Layer, rows: pd.DataFrame | None, law: Drawn | None) -> Reading:
    stats = {} if rows is None else dict(zip(rows["stat"], rows["value"].astype(float), strict=True))
    if law is not None and law.variance == 0:
        stats |= {"weight_norm": 0.0} if law.mean == 0 else {"duplicate_units": float(layer.units - 1)}
    return Reading(layer.name, stats, layer.units)
