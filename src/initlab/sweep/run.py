"""A grid of runs: checked first, then run cell by cell, its table rewritten as cells finish."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from initlab.config import Config
from initlab.config.naming import cell_name, digest, run_name
from initlab.display import ProgressLine, show_cells, show_where
from initlab.errors import UserError
from initlab.experiment import impossible, run
from initlab.records import RunWriter, flatten
from initlab.sweep.table import axes, cells, rewrite

TABLE_EVERY = 5.0  # seconds between rewritings of sweep.csv while cells finish


@dataclass
class Sweep:
    """The cells of a grid, which of them cannot exist and why, and what became of the others."""

    configs: Sequence[Config]
    directory: Path
    skipped: dict[int, str]
    summaries: dict[int, dict[str, Any]] = field(default_factory=dict)
    line: ProgressLine | None = None
    rewritten: float = 0.0

    @classmethod
    def planned(cls, configs: Sequence[Config], directory: Path) -> "Sweep":
        """Check the whole grid before anything is written.

        Raises UserError when two cells are one and the same, or when no cell can exist.
        """
        seen: dict[str, int] = {}
        for k, config in enumerate(configs):
            if digest(config) in seen:
                raise UserError(f"two cells of the grid are the same run ({run_name(config)}): leave one out.")
            seen[digest(config)] = k
        reasons = {k: reason for k, config in enumerate(configs) if (reason := impossible(config)) is not None}
        if reasons and (len(reasons) == len(configs) or configs[0].sweep.impossible == "error"):
            raise UserError(next(iter(reasons.values())))
        return cls(configs, directory, reasons)

    @contextmanager
    def watched(self) -> Iterator["Sweep"]:
        """Show one progress line for the whole sweep."""
        with ProgressLine(f"{len(self.configs)} runs") as self.line:
            yield self

    def run(self, number: int) -> dict[str, Any]:
        """Run one cell, or record why it cannot exist."""
        config = self.configs[number]
        where = self.directory / cell_name(config)
        if number in self.skipped:
            writer = RunWriter(where, config.plain(), tensorboard=False)
            writer.finish("skipped", reason=self.skipped[number], hash=digest(config))
            summary = {"status": "skipped", "reason": self.skipped[number], "path": str(where)}
        else:
            summary = run([config], [where], watch=lambda now: self._watch(config, now))[0]
        self.summaries[number] = summary
        if time.monotonic() - self.rewritten > TABLE_EVERY:
            rewrite(self.directory)
            self.rewritten = time.monotonic()
        return summary

    def _watch(self, config: Config, now: dict[str, Any]) -> None:
        if self.line is not None:
            done = len(self.summaries)
            total = now["steps"] * len(self.configs)
            self.line.label = f"run {done + 1}/{len(self.configs)} {run_name(config)}"
            self.line.update({**now, "step": done * now["steps"] + now["step"], "steps": total})

    def close(self) -> None:
        """Write the final table and show it."""
        frame = rewrite(self.directory)
        keys = list(flatten(self.configs[0].plain()))
        by = axes(frame, [k.removesuffix(".name") for k in keys])
        show_cells(cells(frame, by), by)
        for reason in dict.fromkeys(self.skipped.values()):
            print(f"skipped: {reason}")
        show_where(self.directory.absolute(), Console(), " (sweep.csv: one row per run)")
