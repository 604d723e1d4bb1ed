"""What keeps a forecast network from training: the rules of `report.findings` on predicted rows and promised laws."""

from collections.abc import Mapping, Sequence

import pandas as pd

from initlab.report.findings import Finding, LayerStats, NetworkInfo, find_start_causes
from initlab.report.findings.units import off_center_findings
from initlab.theory.nodes import BranchNode, LayerNode, Node, layer_nodes
from initlab.theory.read_module import LayerLaw


def expected_causes(
    nodes: Sequence[Node], frame: pd.DataFrame, laws: Mapping[str, LayerLaw], network: NetworkInfo
) -> list[Finding]:
    """Return the causes that predicted rows show, and those that the laws of the weights alone do.

    Where the law of a layer has a mean, theory has no rows, and the mean decides what becomes of the signal.

    Args:
        nodes: the network, at least one layer.
        frame: its predicted rows.
        laws: how each layer is drawn.
        network: what is known of the network as a whole.

    >>> nodes = [LayerNode(name, 784, 128, 0.0) for name in "abc"]
    >>> frame = pd.DataFrame(columns=["layer", "index", "stat", "value"])
    >>> ones = dict.fromkeys("abc", LayerLaw(0.0, mean=1.0, known=False))
    >>> [cause.name for cause in expected_causes(nodes, frame, ones, NetworkInfo(act="tanh", scheme="ones"))]
    ['copied_units', 'weights_off_centre']
    """
    rows = dict(iter(frame.groupby("layer")))
    branches = [node.layers[0] for node in nodes if isinstance(node, BranchNode)]
    chain = branches or layer_nodes(nodes)
    stats = [_layer_stats(layer, rows.get(layer.name), laws.get(layer.name)) for layer in chain]
    if branches or chain[-1].act is not None:
        stats.append(LayerStats("(readout)"))
    causes = find_start_causes(stats, network)
    if {cause.name for cause in causes} & {"signal_explodes", "saturated_units", "zero_layer"}:
        return causes
    drawn = [(layer, laws[layer.name]) for layer in chain if layer.name in laws]
    dominated = [(layer.name, law.mean, layer.fan_in) for layer, law in drawn if _mean_dominates(law, layer.fan_in)]
    return [*causes, *off_center_findings(dominated, network)]


def _mean_dominates(law: LayerLaw, fan_in: float) -> bool:
    # Sums of fan_in products with a mean m grow as m·fan_in, those of independent ones as their root.
    return law.mean != 0 and law.mean**2 * fan_in > law.variance and abs(law.mean) * fan_in > 1


def _layer_stats(layer: LayerNode, rows: pd.DataFrame | None, law: LayerLaw | None) -> LayerStats:
    stats = {} if rows is None else dict(zip(rows["stat"], rows["value"].astype(float), strict=True))
    if law is not None and law.variance == 0:
        stats |= {"weight_norm": 0.0} if law.mean == 0 else {"duplicate_units": float(layer.units - 1)}
    return LayerStats(layer.name, stats, layer.units)
