"""`python train.py` and `initlab train`: Hydra in, run() out, and what the exit code says."""

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from initlab.config import Config
from initlab.config.compose import register_config, to_config
from initlab.config.help import program_name
from initlab.config.hydra_errors import translate_hydra_errors
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
INFO_FLAGS = {"--cfg", "-c", "--info", "-i"}  # flags that show a configuration, and run nothing


class HydraBypass(BaseException):
    """Carries an exception past Hydra, which prints lines of its own about every Exception that it sees."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


@dataclass
class InvocationState:
    """What happened between the door's opening and its closing."""

    statuses: list[str] = field(default_factory=list)
    directory: Path | None = None  # of a single run
    made: list[Path] = field(default_factory=list)  # directories that were not there before, outermost first

    def make(self, wanted: Path, exactly: bool) -> Path:
        """Make the run's directory and return it; unless it is wanted exactly, one that no other run has taken."""
        from initlab.system.files import make_directory, require_disk_space
        from initlab.system.files import os_errors_as_user_errors as writing

        require_disk_space(wanted)
        with writing(wanted):
            for parent in reversed([path for path in wanted.parents if not path.exists()]):
                make_directory(parent)
                self.made.append(parent)
            self.directory = self.take(wanted, exactly)
        return self.directory

    def take(self, wanted: Path, exactly: bool) -> Path:
        """Make a directory that nobody else makes: two runs may start in the same second, and are two runs."""
        directory, number = wanted, 2
        while not (exactly and directory.is_dir()):
            try:
                directory.mkdir()
            except FileExistsError:
                if exactly:
                    raise
                directory, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
            else:
                self.made.append(directory)
                break
        return directory

    def undo(self) -> None:
        """Leave nothing of a run that was refused; steps that were already recorded stay."""
        if self.directory in self.made and not self.has_steps():
            shutil.rmtree(self.directory, ignore_errors=True)
        for path in reversed(self.made):
            with suppress(OSError):
                path.rmdir()

    def has_steps(self) -> bool:
        """Did the run record a step?"""
        return self.directory is not None and (self.directory / "metrics.csv").exists()


INVOCATION = InvocationState()


class Gate(Callback):
    """Hydra's callback: a single run is checked, and its directory made, before Hydra writes anything."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what cannot run; take a directory that no other run has."""
        try:
            with translate_hydra_errors():
                make_run_directory(config, check_single_run(config))
        except Exception as error:
            raise HydraBypass(error) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what another sweeper would not heed."""
        if str(config.hydra.sweeper.get("_target_", "")).endswith(".GridSweeper"):
            return
        for key in ("dry_run", "sweep.grids", "sweep.exclude"):
            if value := OmegaConf.select(config, key):
                raise HydraBypass(
                    UserError(f"{key}={value} needs initlab's own sweeper: leave hydra/sweeper as it is, or {key} out.")
                )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how a job ended, alone or in a sweep, for the exit code."""
        summary = job_return.return_value if job_return.status == JobStatus.COMPLETED else {"status": "failed"}
        INVOCATION.statuses.append(summary.get("status", "completed") if isinstance(summary, dict) else "completed")


def check_single_run(composed: DictConfig) -> Config:
    """Return the configuration of a single run; raises UserError if it cannot run."""
    with fast_imports():
        from initlab.experiment import config_refusal
        from initlab.sweep.cost import estimate_cost, require_memory

    config = to_config(composed, composed.hydra.overrides.task)
    if config.race:
        raise UserError("race=true compares the cells of a sweep, and this is a single run: add -m and what differs.")
    for override in composed.hydra.overrides.task:
        if override.lstrip("+").partition("=")[0] in SWEEP_ONLY_KEYS:
            raise UserError(f"{override} is about a sweep, and this is a single run: add -m, or leave it out.")
    reason = config_refusal(config)
    if reason is not None:
        raise UserError(reason)
    require_memory([(config, estimate_cost(config, call_own=False))])
    return config


def make_run_directory(composed: DictConfig, config: Config) -> None:
    """Make the run's directory and tell Hydra; the one that the user named is taken as it is."""
    HydraConfig.instance().set_config(composed)
    wanted = Path(str(OmegaConf.select(composed, "hydra.run.dir")))
    if config.dry_run:
        print(f"{run_name(config)} would go to {wanted.absolute()}. Nothing was written.")
        raise SystemExit(0)
    named = any(override.lstrip("+").startswith("hydra.run.dir=") for override in composed.hydra.overrides.hydra)
    with read_write(composed.hydra):
        composed.hydra.run.dir = str(INVOCATION.make(wanted, exactly=named))


def run_job(composed: DictConfig) -> dict[str, Any]:
    """Run one job in the directory that Hydra chose for it."""
    job = HydraConfig.get()
    try:
        from initlab.experiment import run
        from initlab.sweep.threads import use_suitable_threads
        from initlab.system.terminal import ProgressLine, show_run

        config = to_config(composed, job.overrides.task)
        with ProgressLine(run_name(config)) as line, use_suitable_threads([config]):
            (summary,) = run(
                [config], [Path(job.runtime.output_dir)], line.update, swept=typed_keys(job.overrides.task)
            )
    except Exception as error:
        raise HydraBypass(error) from error
    show_run(run_name(config), summary, tensorboard=config.log.tensorboard)
    if summary["status"] == "diverged" or summary.get("trained") is False:
        explain_failure(Path(summary["path"]))
    if summary["status"] == "failed":
        print_stderr(f"initlab: the run failed; its traceback is in {summary['path']}/run.log.")
    return summary


def explain_failure(directory: Path) -> None:
    """Print what the run's own rows say of why it did not train; the run itself is done and recorded."""
    from initlab.report.diagnosis import explain_directory

    try:
        print(f"went wrong   {explain_directory(directory)}")
    except (OSError, UserError) as error:
        print(f"initlab: the rows of {directory} cannot be read back: {error}", file=sys.stderr)


def run_train(arguments: Sequence[str] | None = None) -> int:
    """Train one network or a grid: compose with Hydra, run, and return the exit code.

    2 for what the user got wrong, 1 for what failed while running, 130 or 143 for an interruption, 0 otherwise:
    divergence is a result. With HYDRA_FULL_ERROR=1 in the environment the traceback is shown beside the sentence.
    """
    INVOCATION.__init__()  # type: ignore[misc]
    full, code = os.environ.get("HYDRA_FULL_ERROR", "0") == "1", 0
    with tolerate_lost_output():
        try:
            run_hydra(sys.argv[1:] if arguments is None else list(arguments))
        except UserError as error:
            INVOCATION.undo()
            code = error.code
            if full:
                print_stderr("".join(traceback.format_exception(error)), end="")
            print_stderr(f"initlab: {error}{recorded_so_far()}")
        except Interrupted as stop:
            code = 128 + stop.signal
            print_stderr(f"\ninitlab: interrupted: {stop.remedy}")
        except KeyboardInterrupt:
            code = 130
            print_stderr(f"\ninitlab: interrupted.{recorded_so_far()}")
    return code or (1 if "failed" in INVOCATION.statuses else 0)


def recorded_so_far() -> str:
    """Say where the records of a run that did not end are."""
    return f" What it recorded so far is in {INVOCATION.directory}." if INVOCATION.has_steps() else ""


def run_hydra(arguments: list[str]) -> None:
    """Hand flags and overrides to Hydra; what it, or the disk, has against them is raised as UserError."""
    working_directory()
    refuse_slips(arguments)
    flags, overrides = split_arguments(arguments)
    refuse_unknown_flags(flags)
    overrides = canonical_overrides(overrides)
    refuse_malformed(overrides)
    if {"-m", "--multirun"} & set(flags) or (is_sweep_experiment(overrides) and not INFO_FLAGS & {*flags}):
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
    """Turn what the disk refuses to a run, by whatever hand, into UserError."""
    try:
        yield
    except OSError as error:
        # A name may be too long to be even looked for, before there is a directory.
        long = error.errno == errno.ENAMETOOLONG and error.filename is not None
        place = INVOCATION.directory or (Path(os.fsdecode(error.filename)) if long else None)
        if error.errno not in DISK_ERRNOS or place is None:
            raise
        from initlab.system.files import os_errors_as_user_errors as writing

        with writing(place):
            raise


@contextmanager
def hydra_command_line(arguments: list[str]) -> Iterator[None]:
    """Let Hydra read these arguments, and raise what goes wrong instead of printing it and leaving."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def refuse_unknown_flags(flags: list[str]) -> None:
    """Refuse flags that Hydra does not have, in a sentence instead of argparse's page."""
    parser = get_args_parser()
    known = [form for action in parser._actions for form in action.option_strings]

    def refuse(message: str) -> NoReturn:
        flag = next((f for f in flags if f.startswith("-") and f.partition("=")[0] not in known), None)
        if flag is None:
            raise UserError(f"{message}: `{program_name()} --hydra-help` explains the flags.")
        name, _, value = flag.lstrip("-").partition("=")
        raise UserError(
            f"{flag} is no flag: keys are written without dashes ({name}={value or '…'}), and "
            f"`{program_name()} --hydra-help` lists the flags.{did_you_mean(flag, known)}"
        )

    shows = sorted((INFO_FLAGS | {"--run", "-r"}) & {flag.partition("=")[0] for flag in flags})
    if shows and {"-m", "--multirun"} & set(flags):
        raise UserError(f"{shows[0]} and -m do not go together: leave -m out, and give every key a single value.")
    parser.error = refuse  # type: ignore[method-assign]
    if set(flags) - {"--version"}:
        parser.parse_args([flag for flag in flags if flag != "--version"])
