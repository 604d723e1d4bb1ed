"""What theory promises of a network under a scheme: the rows beside the measured ones, and the rank of a grid."""

from initlab.prediction.predict import drawn_of, predict, predicted_rows
from initlab.prediction.ranking import Cell, ordered, rank, scored
from initlab.prediction.verdict import Outlook, factor, outlook

__all__ = ["Cell", "Outlook", "drawn_of", "factor", "ordered", "outlook", "predict", "predicted_rows", "rank", "scored"]
