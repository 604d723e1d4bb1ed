"""The configuration: schema, checks, aliases, composition by Hydra, and Hydra's errors in plain sentences."""

from initlab.config.checks import check_config
from initlab.config.schema import Config, LogConfig, SweepConfig, TrainConfig

__all__ = ["Config", "LogConfig", "SweepConfig", "TrainConfig", "check_config"]
