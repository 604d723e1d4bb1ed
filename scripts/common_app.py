"""The common way over a grid: Hydra's own sweeper and launcher around `common_loop`, one job after another.

    python scripts/common_app.py -m depth=3,10 act=tanh,relu root=/where/torchvision/has/FashionMNIST

It prints the seconds of each job by its own clock and of them all, composition included and imports left out. It
imports nothing of initlab.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import common_loop
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@dataclass
class Common:
    """The options of a job."""

    root: str = "."
    depth: int = 3
    width: int = 128
    act: str = "tanh"
    batch: int = 128
    steps: int = 468
    seed: int = 0


ConfigStore.instance().store(name="common", node=Common)


@hydra.main(version_base="1.3", config_path=None, config_name="common")
def job(config: DictConfig) -> None:
    options = {key: config[key] for key in ("depth", "width", "act", "batch", "steps")}
    logs = Path(HydraConfig.get().runtime.output_dir)
    common_loop.torch.manual_seed(config.seed)
    taken = common_loop.train(Path(config.root), logs, test=True, **options)
    print(f"job {taken['seconds']:.3f}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    started = time.perf_counter()
    job()
    print(f"all {time.perf_counter() - started:.3f}", flush=True)
