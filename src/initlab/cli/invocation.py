"""What one call of `initlab train` has done so far, for its exit code and for what it leaves behind."""

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class InvocationState:
    """What one call of `run_train` has done so far.

    Attributes:
        statuses: of the jobs that have ended.
        directory: of a single run.
        created: directories that were made, outermost first.
    """

    statuses: list[str] = field(default_factory=list)
    directory: Path | None = None
    created: list[Path] = field(default_factory=list)

    def make_directory(self, path: Path, exactly: bool) -> Path:
        """Make the run's directory and return it; unless `exactly`, under a new name where there is one already.

        Two runs may start in the same second: each gets a directory that no other process made.

        Raises:
            UserError: the directory cannot be made.
            FileExistsError: its name is that of a file.
        """
        from initlab.system.files import make_directory, os_errors_as_user_errors, require_disk_space

        require_disk_space(path)
        with os_errors_as_user_errors(path):
            for parent in reversed([parent for parent in path.parents if not parent.exists()]):
                make_directory(parent)
                self.created.append(parent)
            self.directory, number = path, 2
            while not (exactly and self.directory.is_dir()):
                try:
                    self.directory.mkdir()
                except FileExistsError:
                    if exactly:
                        raise
                    self.directory, number = path.with_name(f"{path.name}-{number}"), number + 1
                else:
                    self.created.append(self.directory)
                    break
        return self.directory

    def remove_created(self) -> None:
        """Remove the directories of a run that was refused; one that holds recorded steps stays."""
        if self.directory in self.created and not self.has_steps():
            shutil.rmtree(self.directory, ignore_errors=True)
        for path in reversed(self.created):
            with suppress(OSError):
                path.rmdir()

    def has_steps(self) -> bool:
        """Return whether the run has recorded a step."""
        return self.directory is not None and (self.directory / "metrics.csv").exists()

    def records_hint(self) -> str:
        """Return the end of a sentence: where the records of a run that did not end are."""
        return f" What it recorded so far is in {self.directory}." if self.has_steps() else ""


INVOCATION = InvocationState()
