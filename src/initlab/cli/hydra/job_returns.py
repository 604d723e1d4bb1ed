"""Hydra's account of a job whose result is known: the files it writes, the callbacks it calls, the return it keeps."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper

from initlab.cli.hydra.jobs import HydraJob


class LazyJobReturn(JobReturn):
    """Hydra's account of a job, whose configurations stay packed until somebody asks: a sweep has thousands."""

    def __init__(self, found: JobReturn, job: HydraJob):
        self.__dict__.update({k: v for k, v in vars(found).items() if k not in ("cfg", "hydra_cfg")})
        self.job = job

    @property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        """The job's configuration without Hydra's node."""
        found = self.job.composed()
        with open_dict(found):
            del found["hydra"]
        return found

    @property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        """Hydra's node of the job's configuration."""
        found = set_output_dir(self.job.composed(), self.job.directory)
        alone: DictConfig = OmegaConf.masked_copy(found, "hydra")
        OmegaConf.set_readonly(alone.hydra, True)
        return alone


def set_output_dir(composed: DictConfig, directory: Path) -> DictConfig:
    """Set the output directory as Hydra does when it runs a job."""
    with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
        composed.hydra.runtime.output_dir = str(directory)
    return composed


class JobFailed(Exception):
    """What Hydra is told of a network that failed; the traceback is in the run's log."""


def replay_job(
    context: HydraContext, master: DictConfig, job: HydraJob, summary: dict[str, Any], fresh: bool = True
) -> JobReturn:
    """Give Hydra back a job whose result is known: its files are written and callbacks called, as for any job.

    Arguments: `fresh`: whether the job ran just now; one that was done before is only accounted for.
    """
    written = job.facts.files is None or (job.directory / job.facts.files).is_dir()
    if written and not fresh:
        found = make_job_return(job, summary)
    elif job.facts.unheard and has_only_own_callbacks(context):
        found = record_job(context, master, job, summary)
    else:
        found = run_through_hydra(context, job, summary)
        configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    return LazyJobReturn(found, job)


def make_job_return(job: HydraJob, summary: dict[str, Any]) -> JobReturn:
    """Return what `run_job` returns of a job, its configurations aside."""
    found = JobReturn(overrides=list(job.overrides), working_dir=job.facts.cwd)
    found.task_name, found.status = JobRuntime.instance().get("name"), JobStatus.COMPLETED
    found.return_value = summary
    if summary["status"] == "failed":
        found.status, found.return_value = JobStatus.FAILED, JobFailed(summary.get("error"))
    return found


def run_through_hydra(context: HydraContext, job: HydraJob, summary: dict[str, Any]) -> JobReturn:
    """Let Hydra run a function that returns what is known."""

    def give_back(_: DictConfig) -> dict[str, Any]:
        if summary["status"] == "failed":
            raise JobFailed(summary.get("error"))
        return summary

    with fast_config_copies():
        return run_job(
            task_function=give_back,
            config=job.composed(),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=context,
        )


def has_only_own_callbacks(context: HydraContext) -> bool:
    """Are all callbacks initlab's own?

    Then `run_job`, which copies the whole configuration four times for those who might look, does it for no one.
    """
    return all(type(callback).__module__.startswith("initlab.") for callback in context.callbacks.callbacks)


def record_job(context: HydraContext, master: DictConfig, job: HydraJob, summary: dict[str, Any]) -> JobReturn:
    """Write Hydra's files of a job and call initlab's own callbacks, which look at the return alone."""
    if job.facts.files is not None:
        place = job.directory / job.facts.files
        place.mkdir(parents=True, exist_ok=True)
        for name, text in hydra_file_texts(set_output_dir(job.composed(), job.directory)).items():
            (place / name).write_text(text, encoding="utf-8")
    found = make_job_return(job, summary)
    context.callbacks.on_job_end(config=master, job_return=found)
    return found


def hydra_file_texts(composed: DictConfig) -> dict[str, str]:
    """Return the text of a job's files in `.hydra` by name, as Hydra writes them but for where long lines break."""
    whole = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    assert isinstance(whole, dict)
    hydra = whole.pop("hydra")
    return {
        "config.yaml": dump_omegaconf(whole),
        "hydra.yaml": dump_omegaconf({"hydra": hydra}),
        "overrides.yaml": dump_omegaconf(hydra["overrides"]["task"]),
    }


def dump_omegaconf(value: Any) -> str:
    """Return YAML as `OmegaConf.to_yaml` writes it, by the C library where PyYAML has it: in a sixth of the time."""
    how: dict[str, Any] = {"default_flow_style": False, "allow_unicode": True, "sort_keys": False}
    try:
        return str(yaml.dump(value, Dumper=FastDumper, **how))
    except UnicodeEncodeError:  # half a letter of a file's name, which the C library cannot escape
        return str(yaml.dump(value, Dumper=get_omega_conf_dumper(), **how))


class FastDumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """OmegaConf's dumper: text that YAML would take for something else is quoted."""


FastDumper.add_representer(str, get_omega_conf_dumper().str_representer)


@contextmanager
def fast_config_copies() -> Iterator[None]:
    """Let configurations be copied by pickle for the while: the same copy, node by node in C instead of Python.

    Hydra copies the whole configuration of a job four times; that was a quarter of what a job costs it.
    """
    slow = DictConfig.__deepcopy__

    def quick(self: DictConfig, memo: dict[int, Any]) -> DictConfig:
        # A part of a configuration keeps its parent, which is not copied.
        parent, self.__dict__["_parent"] = self.__dict__["_parent"], None
        try:
            found: DictConfig = pickle.loads(pickle.dumps(self, -1))
        finally:
            self.__dict__["_parent"] = parent
        found.__dict__["_parent"] = parent
        memo[id(self)] = found
        return found

    DictConfig.__deepcopy__ = quick  # type: ignore[method-assign]
    try:
        yield
    finally:
        DictConfig.__deepcopy__ = slow  # type: ignore[method-assign]
