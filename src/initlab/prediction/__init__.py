"""Forecasts of a network under a scheme: rows beside the measured ones, a sentence, and the rank of a grid."""

from initlab.prediction.predict import layer_laws, predict, predicted_rows
from initlab.prediction.ranking import RankedNetwork, rank, score_networks, sort_by_score
from initlab.prediction.verdict import NetworkForecast, forecast_network, format_ratio

__all__ = [
    "NetworkForecast",
    "RankedNetwork",
    "forecast_network",
    "format_ratio",
    "layer_laws",
    "predict",
    "predicted_rows",
    "rank",
    "score_networks",
    "sort_by_score",
]
