"""What a parameter is, how many connections its units have, and its name.

A *fan* counts connections: `fan_in` those that enter a unit of the output, `fan_out` those that leave a unit of the
input, in the interior of an image and on average where a stride makes units differ. torch and most libraries read fans
off the stored shape, which is wrong for transposed convolutions (stored input first), for grouped ones written as
one matrix, and for packed weights (q, k and v, or the gates of an LSTM, in one tensor). Here a parameter is a list of
*blocks*, each a matrix-like part with its own fans and a view as (out, in, *receptive).

Two conventions. A strided convolution keeps `fan_out = out · k`, as He et al. 2015 and torch have it, although an
input unit feeds only 1/stride of those; a strided transposed convolution counts `fan_in = in · k / stride`, because
otherwise its output's variance would be wrong by the stride. An embedding looks up one row: `fan_in = 1`.
"""

from initlab.inspection.kinds import NORMS
from initlab.inspection.parameters import NamedModule, canonical_names, list_modules, list_parameters, walk
from initlab.inspection.records import TABLE_KINDS, WEIGHT_KINDS, Block, Fans, Parameter
from initlab.inspection.shapes import table_blocks
from initlab.inspection.sizes import recurrent_type

__all__ = [
    "NORMS",
    "TABLE_KINDS",
    "WEIGHT_KINDS",
    "Block",
    "Fans",
    "NamedModule",
    "Parameter",
    "canonical_names",
    "list_modules",
    "list_parameters",
    "recurrent_type",
    "table_blocks",
    "walk",
]
