"""Biases of recurrent gates: the forget bias, and chrono initialization.

A gate's bias is the sum of two vectors in torch (`bias_ih` and `bias_hh`): the first gets the value, the second 0. The
gate that keeps the state is an LSTM's forget gate and a GRU's update gate (torch's h′ = (1 − z) n + z h). Sources:
Gers, Schmidhuber & Cummins 2000, Learning to Forget; Jozefowicz, Zaremba & Sutskever 2015, An Empirical Exploration of
Recurrent Network Architectures (forget bias 1); Tallec & Ollivier 2018, Can recurrent neural networks warp time?
(b_f = log U(1, T − 1), b_i = −b_f).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from initlab.inspection import Parameter, recurrent_type
from initlab.schemes import Law, laws

KEEP_GATES = {"LSTM": "f", "GRU": "z"}
"""The gate that keeps the state, by the layer's type."""


def is_gate_bias(parameter: Parameter) -> bool:
    """Return whether a parameter is a bias of an LSTM or a GRU."""
    return parameter.kind == "bias" and recurrent_type(parameter.owner) in KEEP_GATES


def gate_laws(parameter: Parameter, forget_bias: float | None, chrono: float | None) -> dict[str, Law]:
    """Return the laws of the gates whose biases these options set, by the gate's label.

    Args:
        parameter: a bias of an LSTM or a GRU.
        forget_bias: constant of the gate that keeps the state.
        chrono: longest time lag; at most one of both is given.

    >>> from initlab.inspection import walk
    >>> bias = next(p for p in walk(torch.nn.LSTM(2, 3)) if p.name == "bias_ih_l0")
    >>> {gate: law.mean for gate, law in gate_laws(bias, 1.0, None).items()}
    {'f': 1.0}
    """
    keep = KEEP_GATES[recurrent_type(parameter.owner)]
    first = parameter.name.rpartition(".")[2].startswith("bias_ih")
    if forget_bias is not None:
        return {keep: laws.constant(float(forget_bias) if first else 0.0)}
    if chrono is None:
        return {}
    law = laws.log_uniform(chrono - 1) if first else laws.constant(0.0)
    return {keep: law} | ({"i": laws.scale_law(law, -1) if first else law} if keep == "f" else {})


def fill_gates(parameter: Parameter, tensor: Tensor, wanted: Mapping[str, Law], generator: torch.Generator) -> None:
    """Write the biases of these gates; an input gate's is minus its forget gate's.

    Args:
        parameter: a bias of an LSTM or a GRU.
        tensor: its values as stored, changed in place.
        wanted: laws by the gate's label, from `gate_laws`.
        generator: draws log U(1, T − 1).
    """
    keep = KEEP_GATES[recurrent_type(parameter.owner)]
    views = {block.label: block.view(tensor) for block in parameter.blocks}
    law = wanted[keep]
    if law.deterministic:
        for gate, each in wanted.items():
            views[gate].fill_(each.mean)
        return
    drawn = torch.empty(views[keep].shape, dtype=torch.float32, device="cpu")
    drawn.uniform_(1, math.exp(law.support[1]), generator=generator).log_()
    for gate in wanted:
        views[gate].copy_(drawn if gate == keep else -drawn)
