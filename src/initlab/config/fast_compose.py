"""Composing every job of a grid at the price of one composition per distinct set of group choices."""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """Composes jobs as Hydra's `load_sweep_config` does, which reads and merges every file anew (about 0.1 s a job).

    Which files are merged depends on the group choices alone, so what Hydra makes of those is kept, and a job's values
    are set in a copy of it by Hydra's own function. Wherever anything is out of the ordinary Hydra composes the job.

    Arguments: `loader` and `master`, the configuration of the whole sweep, as Hydra hands them to a launcher.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig):
        self.loader, self.master = loader, master
        self.bases: dict[tuple[str, ...], bytes] = {}
        self.files: dict[str, bytes] = {}
        self.parsed: dict[str, Override] = {}
        self.groups: dict[str, bool] = {}
        self.read: dict[str, Any] = {}
        # Evaluated before anything is copied: all jobs share the clock of the sweep.
        self.directory = str(OmegaConf.select(master, "hydra.sweep.dir"))

    def job(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return the configuration of one job, Hydra's node included.

        Raises what Hydra raises for overrides that cannot be.
        """
        composed = self.quickly(overrides) if self.tools else None
        if composed is None:
            composed = self.loader.load_sweep_config(self.master, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id = str(number)
            composed.hydra.job.num = number
        return composed

    def quickly(self, overrides: Sequence[str]) -> DictConfig | None:
        """Set a job's values in a copy of what its group choices make; None where Hydra had better do it."""
        apply, dirname, _ = self.tools
        try:
            jobs = [self.parse(override) for override in overrides]
            if any(o.is_sweep_override() or o.is_hydra_override() for o in jobs):
                return None
            chosen = [self.chooses(o) for o in jobs]
            base = self.base(tuple(o for o, is_choice in zip(overrides, chosen, strict=True) if is_choice))
            apply([o for o, is_choice in zip(jobs, chosen, strict=True) if not is_choice], base)
        except (HydraException, OmegaConfBaseException):
            # Hydra meets the same problem and says it in its own words.
            return None
        base.hydra.overrides.task = [str(o.input_line) for o in jobs]
        how = base.hydra.job.config.override_dirname
        base.hydra.job.override_dirname = dirname(
            overrides=jobs, kv_sep=how.kv_sep, item_sep=how.item_sep, exclude_keys=how.exclude_keys
        )
        OmegaConf.copy_cache(from_config=self.master, to_config=base)
        return base

    def parse(self, override: str) -> Override:
        """Parse an override once."""
        if override not in self.parsed:
            self.parsed[override] = OverridesParser.create().parse_overrides([override])[0]
        return self.parsed[override]

    def chooses(self, override: Override) -> bool:
        """Is it the choice of an option of a config group?"""
        key = override.key_or_group
        if key not in self.groups:
            self.groups[key] = self.tools[2](key)
        return self.groups[key] and not isinstance(override.value(), dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave Hydra's own objects out: a process that composes for another one returns what it has composed."""
        return {"bases": self.bases, "directory": self.directory, "files": {}, "parsed": {}, "groups": {}, "read": {}}

    def adopt(self, loader: ConfigLoader, master: DictConfig) -> None:
        """Go on with Hydra's objects of this process."""
        self.loader, self.master = loader, master

    def base(self, choices: tuple[str, ...]) -> DictConfig:
        """Return a fresh copy of what Hydra composes from group choices alone."""
        if choices not in self.bases:
            with self.files_kept():
                self.bases[choices] = pickle.dumps(self.loader.load_sweep_config(self.master, list(choices)), -1)
        copy: DictConfig = pickle.loads(self.bases[choices])
        return copy

    def file(self, path: str) -> Any:
        """Return what Hydra reads from one option's file (its values, package and defaults), None where there is none.

        It is read once, and not to be changed.
        """
        if path not in self.read:
            self.read[path] = self.loader.repository.load_config(path)  # type: ignore[attr-defined]
        return self.read[path]

    @contextmanager
    def files_kept(self) -> Iterator[None]:
        """Let Hydra read each file of the grid once: otherwise every composition begins with a cache of its own."""
        repository = self.loader.repository  # type: ignore[attr-defined]
        read = repository.load_config

        def load_config(config_path: str) -> Any:
            if config_path not in self.files:
                self.files[config_path] = pickle.dumps(read(config_path=config_path), -1)
            return pickle.loads(self.files[config_path])

        repository.load_config = load_config
        try:
            yield
        finally:
            del repository.load_config

    @cached_property
    def tools(self) -> Any:
        """Hydra's private functions that this rests on, or None where this version has them not, or sources are added.

        They are: setting values, naming them for `override_dirname`, and asking whether a key is a config group.
        """
        try:
            from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname

            apply = ConfigLoaderImpl._apply_overrides_to_config
            group_exists = self.loader.repository.group_exists  # type: ignore[attr-defined]
        except (ImportError, AttributeError):
            return None
        if OmegaConf.select(self.master, "hydra.searchpath"):
            return None
        return apply, get_overrides_dirname, group_exists
