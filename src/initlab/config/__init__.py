"""Where Hydra stops: the schema, its checks, aliases, and Hydra's errors in the user's words."""

from initlab.config.checks import check_config
from initlab.config.schema import Config, LogConfig, SweepConfig, TrainConfig

__all__ = ["Config", "LogConfig", "SweepConfig", "TrainConfig", "check_config"]
