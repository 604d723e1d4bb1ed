"""`python train.py` and `initlab train`: Hydra in, run() out, exit codes 0, 1 and 2."""

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from initlab.config.compose import conf_dir, register, to_config
from initlab.config.errors import translated
from initlab.config.naming import run_name
from initlab.config.overrides import canonical
from initlab.errors import UserError

REFUSED: list[UserError] = []
OUTCOMES: list[dict[str, Any]] = []  # summaries of this process's runs, for the exit code


def task(composed: DictConfig) -> dict[str, Any]:
    """Run one job in the directory that Hydra chose for it."""
    job = HydraConfig.get()
    directory = Path(job.runtime.output_dir)
    try:
        config = to_config(composed, job.overrides.task)
        from initlab.display import ProgressLine, show_run
        from initlab.experiment import run

        label = run_name(config)
        with ProgressLine(label) as line:
            summary = run([config], [directory], watch=line.update)[0]
        show_run(label, summary)
    except UserError as error:
        # Returned, not raised: Hydra would print a line of its own about every exception that passes through it.
        remove_if_only_hydra(directory)
        REFUSED.append(error)
        return {"status": "refused"}
    OUTCOMES.append(summary)
    return summary


def remove_if_only_hydra(directory: Path) -> None:
    """Remove a run directory that holds nothing but Hydra's own files: a refused run leaves nothing behind."""
    if directory.is_dir() and all(path.name == ".hydra" for path in directory.iterdir()):
        shutil.rmtree(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one network or a grid: compose with Hydra, run, and return the exit code.

    2 for what the user got wrong, 1 for what failed while running, 0 otherwise; divergence is a result.
    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead of the sentence.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    register()
    OUTCOMES.clear()
    REFUSED.clear()
    full = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    try:
        # Hydra reads sys.argv; with HYDRA_FULL_ERROR it raises what went wrong instead of printing it and exiting.
        with (
            patch.object(sys, "argv", [sys.argv[0], *canonical(arguments)]),
            patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}),
            translated(),
            readable_disk_errors(),
        ):
            app()
            if REFUSED:
                raise REFUSED[0]
    except UserError as error:
        if full:
            raise
        print(f"initlab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("initlab: interrupted.", file=sys.stderr)
        return 130
    return 1 if any(outcome["status"] == "failed" for outcome in OUTCOMES) else 0


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
