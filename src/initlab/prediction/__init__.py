"""What theory promises of a network under a scheme: the rows beside the measured ones, and the rank of a grid."""

from initlab.prediction.predict import drawn_of, predict, predicted_rows
from initlab.prediction.rank import rank

__all__ = ["drawn_of", "predict", "predicted_rows", "rank"]
