"""The optional fast path of an ensemble on a CPU; INITLAB_FAST_CPU=0 switches it off.

`sequential` computes the members of a part one after another without autograd. Where they are computed layer by layer,
`fast_product` and `fast_activation` replace single operations of torch that are slow on this processor.
"""

from initlab.ensemble.cpu.activations import fast_activation
from initlab.ensemble.cpu.openblas import fast_product

__all__ = ["fast_activation", "fast_product"]
