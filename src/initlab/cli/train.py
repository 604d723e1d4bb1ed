"""`python train.py` and `initlab train`: compose with Hydra, run, and return the exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, env_override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from initlab.cli.invocation import INVOCATION
from initlab.config import Config
from initlab.config.compose import register_config, to_config
from initlab.config.help import program_name
from initlab.config.hydra_errors import translate_hydra_errors
from initlab.config.hydra_interface import command_line_parser, flags_of
from initlab.config.naming import run_name
from initlab.config.option_files import conf_dir
from initlab.config.overrides import (
    canonical_overrides,
    defer_option_keys,
    is_sweep_experiment,
    refuse_malformed,
    split_arguments,
    typed_keys,
)
from initlab.config.typing_slips import refuse_slips
from initlab.errors import Interrupted, UserError, did_you_mean, working_directory
from initlab.system.escape import print
from initlab.system.startup import fast_imports
from initlab.system.streams import print_stderr, tolerate_lost_output

DISK_ERRNOS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST", "ENAMETOOLONG", "ELOOP")
    if hasattr(errno, name)
}


SWEEP_ONLY_KEYS = {"sweep.name", "sweep.grids", "sweep.exclude", "sweep.order", "sweep.impossible", "sweep.max_group"}
INFO_FLAGS = {"--cfg", "-c", "--info", "-i"}  # print a configuration, and run nothing
MULTIRUN_FLAGS = {"-m", "--multirun"}


class HydraBypass(BaseException):
    """Carries an exception through Hydra, which prints lines of its own about every `Exception` that it sees."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class CheckBeforeRun(Callback):
    """Hydra's callback: a single run is checked, and its directory made, before Hydra writes anything."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the run, and make its directory.

        Raises:
            HydraBypass: it cannot run.
        """
        try:
            with translate_hydra_errors():
                make_run_directory(config, check_single_run(config))
        except Exception as error:
            raise HydraBypass(error) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse keys that another sweeper would ignore.

        Raises:
            HydraBypass: there is one.
        """
        if str(config.hydra.sweeper.get("_target_", "")).endswith(".GridSweeper"):
            return
        for key in ("dry_run", "sweep.grids", "sweep.exclude"):
            if value := OmegaConf.select(config, key):
                raise HydraBypass(
                    UserError(f"{key}={value} needs initlab's own sweeper: leave hydra/sweeper as it is, or {key} out.")
                )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record how a job ended, alone or in a sweep, for the exit code."""
        summary = job_return.return_value if job_return.status == JobStatus.COMPLETED else {"status": "failed"}
        INVOCATION.statuses.append(summary.get("status", "completed") if isinstance(summary, dict) else "completed")


def check_single_run(composed: DictConfig) -> Config:
    """Return the configuration of a single run.

    Raises:
        UserError: it cannot run.
    """
    with fast_imports():
        from initlab.experiment import config_refusal
        from initlab.sweep.cost import estimate_cost, require_memory

    overrides = composed.hydra.overrides.task
    config = to_config(composed, overrides)
    if config.race:
        raise UserError("race=true compares the cells of a sweep, and this is a single run: add -m and what differs.")
    for override, key in zip(overrides, typed_keys(overrides), strict=True):
        if key in SWEEP_ONLY_KEYS:
            raise UserError(f"{override} is about a sweep, and this is a single run: add -m, or leave it out.")
    if (reason := config_refusal(config)) is not None:
        raise UserError(reason)
    require_memory([(config, estimate_cost(config, call_own=False))])
    return config


def make_run_directory(composed: DictConfig, config: Config) -> None:
    """Make the run's directory, and set it in Hydra's node; a directory that the user named is used as it is.

    Raises:
        SystemExit: with `dry_run`, after printing where the run would go.
    """
    HydraConfig.instance().set_config(composed)
    path = Path(str(OmegaConf.select(composed, "hydra.run.dir")))
    if config.dry_run:
        print(f"{run_name(config)} would go to {path.absolute()}. Nothing was written.")
        raise SystemExit(0)
    named_by_user = "hydra.run.dir" in typed_keys(composed.hydra.overrides.hydra)
    with read_write(composed.hydra):
        composed.hydra.run.dir = str(INVOCATION.make_directory(path, exactly=named_by_user))


def run_job(composed: DictConfig) -> dict[str, Any]:
    """Run one job in the directory that Hydra's node names, print how it ended, and return its summary.

    Raises:
        HydraBypass: it could not be run; a network that fails is a result with the status `failed`.
    """
    job = HydraConfig.get()
    try:
        from initlab.experiment import run
        from initlab.sweep.threads import use_suitable_threads
        from initlab.system.terminal import ProgressLine, show_run

        config = to_config(composed, job.overrides.task)
        keys, directory = typed_keys(job.overrides.task), Path(job.runtime.output_dir)
        with ProgressLine(run_name(config)) as line, use_suitable_threads([config]):
            (summary,) = run([config], [directory], line.update, swept=keys)
    except Exception as error:
        raise HydraBypass(error) from error
    show_run(run_name(config), summary, tensorboard=config.log.tensorboard)
    if summary["status"] == "diverged" or summary.get("trained") is False:
        print_explanation(Path(summary["path"]))
    if summary["status"] == "failed":
        print_stderr(f"initlab: the run failed; its traceback is in {summary['path']}/run.log.")
    return summary


def print_explanation(directory: Path) -> None:
    """Print why a run did not train, as far as its own rows show it."""
    from initlab.report.diagnosis import explain_directory

    try:
        print(f"went wrong   {explain_directory(directory)}")
    except (OSError, UserError) as error:
        print(f"initlab: the rows of {directory} cannot be read back: {error}", file=sys.stderr)


def run_train(arguments: Sequence[str] | None = None) -> int:
    """Train one network or a grid, and return the exit code.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is printed before the sentence.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        2 for what the user got wrong, 1 for what failed while running, 130 or 143 for an interruption, else 0: a run
        that diverged is a result.
    """
    INVOCATION.__init__()  # type: ignore[misc]
    with_traceback, code = os.environ.get("HYDRA_FULL_ERROR", "0") == "1", 0
    with tolerate_lost_output():
        try:
            run_hydra(sys.argv[1:] if arguments is None else list(arguments))
        except UserError as error:
            INVOCATION.remove_created()
            code = error.code
            if with_traceback:
                print_stderr("".join(traceback.format_exception(error)), end="")
            print_stderr(f"initlab: {error}{INVOCATION.records_hint()}")
        except Interrupted as stop:
            code = 128 + stop.signal
            print_stderr(f"\ninitlab: interrupted: {stop.remedy}")
        except KeyboardInterrupt:
            code = 130
            print_stderr(f"\ninitlab: interrupted.{INVOCATION.records_hint()}")
    return code or (1 if "failed" in INVOCATION.statuses else 0)


def run_hydra(arguments: list[str]) -> None:
    """Check what was typed, and run Hydra on it.

    Raises:
        UserError: what was typed is wrong, or Hydra or the disk refuses it.
    """
    working_directory()
    refuse_slips(arguments)
    flags, overrides = split_arguments(arguments)
    refuse_unknown_flags(flags)
    overrides = canonical_overrides(overrides)
    refuse_malformed(overrides)
    if MULTIRUN_FLAGS & {*flags} or (is_sweep_experiment(overrides) and not INFO_FLAGS & {*flags}):
        overrides = defer_option_keys(overrides)
    register_config()
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_job)
    with hydra_command_line([*flags, *overrides]), translate_disk_errors(), translate_hydra_errors():
        try:
            app()
        except HydraBypass as carrier:
            raise carrier.error from None


@contextmanager
def translate_disk_errors() -> Iterator[None]:
    """Turn errors of the disk in a run's directory into UserError, whichever code writes there.

    Raises:
        UserError: the disk is full, or the directory cannot be written.
        OSError: any other.
    """
    try:
        yield
    except OSError as error:
        # A name may be too long even to look for; then there is no directory yet.
        too_long = error.errno == errno.ENAMETOOLONG and error.filename is not None
        path = INVOCATION.directory or (Path(os.fsdecode(error.filename)) if too_long else None)
        if error.errno not in DISK_ERRNOS or path is None:
            raise
        from initlab.system.files import os_errors_as_user_errors

        with os_errors_as_user_errors(path):
            raise


@contextmanager
def hydra_command_line(arguments: list[str]) -> Iterator[None]:
    """Run Hydra with these arguments, and with HYDRA_FULL_ERROR, so that it raises what goes wrong."""
    argv = sys.argv
    sys.argv = [argv[0], *arguments]
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            yield
    finally:
        sys.argv = argv


def refuse_unknown_flags(flags: list[str]) -> None:
    """Refuse flags that Hydra does not have, in one sentence instead of argparse's page.

    Raises:
        UserError: a flag is unknown, lacks its value, or does not go with another.
    """
    parser = command_line_parser()
    if parser is None or not {*flags} - {"--version"}:
        return
    known = flags_of(parser)

    def refuse(message: str) -> NoReturn:
        flag = next((f for f in flags if f.startswith("-") and f.partition("=")[0] not in known), None)
        if flag is None:
            raise UserError(f"{message}: `{program_name()} --hydra-help` explains the flags.")
        name, _, value = flag.lstrip("-").partition("=")
        raise UserError(
            f"{flag} is not a flag: keys are written without dashes ({name}={value or '…'}), and "
            f"`{program_name()} --hydra-help` lists the flags.{did_you_mean(flag, known)}"
        )

    single = sorted((INFO_FLAGS | {"--run", "-r"}) & {flag.partition("=")[0] for flag in flags})
    if single and MULTIRUN_FLAGS & {*flags}:
        raise UserError(f"{single[0]} and -m do not go together: leave -m out, and give every key a single value.")
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args([flag for flag in flags if flag != "--version"])
