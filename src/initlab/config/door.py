"""`python train.py` and `initlab train`: Hydra in, run() out, exit codes 0, 1 and 2."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from initlab.config.compose import conf_dir, register, to_config
from initlab.config.errors import translated
from initlab.config.overrides import canonical
from initlab.errors import UserError


def task(composed: DictConfig) -> dict:
    """Run one job in the directory that Hydra chose for it."""
    from initlab.experiment import run_one

    job = HydraConfig.get()
    config = to_config(composed, job.overrides.task)
    return run_one(config, Path(job.runtime.output_dir))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one network or a grid: compose with Hydra, run, and return the exit code.

    2 for what the user got wrong, 1 for what failed while running, 0 otherwise; divergence is a result.
    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead of the sentence.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    register()
    full = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    try:
        # Hydra reads sys.argv, and tells apart what it prints itself from what it raises by this variable.
        with (
            patch.object(sys, "argv", [sys.argv[0], *canonical(arguments)]),
            patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}),
            translated(),
            readable_disk_errors(),
        ):
            app()
    except UserError as error:
        if full:
            raise
        print(f"initlab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("initlab: interrupted.", file=sys.stderr)
        return 130
    from initlab.experiment import failures

    return 1 if failures() else 0


class readable_disk_errors:
    """Turn a full disk or an unwritable directory into one sentence with the remedy."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise UserError(
                f"cannot write {error.filename or 'the output directory'} ({error.strerror}): free some space, or "
                "choose another place with hydra.run.dir=PATH (one run) or sweep.root=PATH (a sweep)."
            ) from error
