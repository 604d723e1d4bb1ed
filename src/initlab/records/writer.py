"""The writer of a run directory: the CSV files are the record, TensorBoard is the view, `summary.json` comes last."""

import csv
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.errors import UserError, did_you_mean
from initlab.records.checksums import RECORDS, SUMMARY_FORMAT, WEIGHTS, Checksum, append_checksum
from initlab.records.columns import (
    FINAL_METRICS,
    HISTOGRAM_NUMBERS,
    METRICS,
    TABLE_COLUMNS,
    LayerRow,
    csv_bytes,
    frame_to_csv,
)
from initlab.records.environment import describe_environment
from initlab.records.repair import EVENT_FILE_NAME, VIEW_FILES, find_resume_problem, rewind_run
from initlab.records.serialization import encode_text, to_json, to_plain, to_yaml
from initlab.records.tensorboard import TensorBoardView
from initlab.statistics.histograms import Histogram
from initlab.system.escape import printable_lines
from initlab.system.files import append_bytes, fsync_path, os_errors_as_user_errors, write_atomically

if TYPE_CHECKING:
    import pandas as pd

_DURABLE_STATUSES = ("completed", "diverged")  # other runs are tried again by the next launch


class RunWriter:
    """The files of one run: rows are appended in small pieces, and no file stays open.

    Rows are buffered until `flush`, or until new rows come more than `flush_seconds` after the last write. NaN and
    infinities are values like any other.

    Args:
        directory: the run's own directory; made if need be. Files of an earlier attempt are removed.
        config: the resolved configuration as nested dictionaries; written first, as `config.yaml`.
        hparams: the values by which TensorBoard's HParams page compares runs.
        first: names of hparams that the page shows at once.
        metrics: final metrics of `finish` that the page shows; leave out those that this run never measures.
        tensorboard: whether to write an event file beside the CSV files.
        flush_seconds: how long rows may be buffered.

    Raises:
        UserError: the directory cannot be written or its disk is full (so do all methods that write).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunWriter(Path(folder) / "a", {"init": {"name": "zeros"}, "depth": 3}, hparams={"depth": 3})
    ...     run.add_scalars(0, {"loss": 2.3})
    ...     run.finish("completed", loss=2.3)
    ...     print((Path(folder) / "a" / "metrics.csv").read_text().splitlines()[1])
    0,2.3,,,,,,,
    """

    def __init__(
        self,
        directory: Path | str,
        config: Mapping[str, Any],
        *,
        hparams: Mapping[str, Any] | None = None,
        first: Collection[str] = (),
        metrics: Sequence[str] = ("loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"),
        tensorboard: bool = True,
        flush_seconds: float = 2.0,
    ) -> None:
        path = Path(directory)
        with os_errors_as_user_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            for name in ("summary.json", "parameters.csv", *WEIGHTS, *TABLE_COLUMNS, *VIEW_FILES):
                (path / name).unlink(missing_ok=True)
        self._open(path, config, tensorboard, flush_seconds)
        self.write_record("config.yaml", to_yaml(self._config))
        self._unsynced.add(path.parent)
        if self._view:
            self._view.begin(self._config, hparams or {}, metrics, first)
        self.flush()

    def _open(self, directory: Path, config: Mapping[str, Any], tensorboard: bool, flush_seconds: float = 2.0) -> None:
        self.directory = directory
        self.repairs: list[str] = []
        self._config = to_plain(config)
        self._checksums: dict[str, Checksum] = {}
        self._parameters = ""
        self._unsynced: set[Path] = set()
        self._pending: dict[str, list[bytes]] = {}
        self._open_row: tuple[int, dict[str, float]] | None = None
        self._flush_seconds = flush_seconds
        self._due = time.monotonic() + flush_seconds
        self._view = TensorBoardView(directory / EVENT_FILE_NAME) if tensorboard else None

    @classmethod
    def resume(
        cls,
        directory: Path | str,
        position: Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        tensorboard: bool = True,
        may_differ: Callable[[str], bool] = lambda _: False,
    ) -> "RunWriter":
        """Continue a run at a position: every file is cut back to it.

        `repairs` of the writer, and the log, have a sentence for every damaged file that was written again.

        Args:
            directory: the run's own directory.
            position: what `position()` returned.
            config: the resolved configuration; written again, whatever the directory records.
            tensorboard: whether to write an event file.
            may_differ: whether a dotted key of the configuration may differ from the recorded one without a remark.

        Raises:
            UserError: a table is shorter than at that position, or was changed since.
        """
        path = Path(directory)
        if damage := find_resume_problem(path, position):
            raise UserError(f"{path}: {damage}: delete {path} and run this cell again.")
        files = {name: c for name, c in position["files"].items() if tensorboard or name != EVENT_FILE_NAME}
        rewound = rewind_run(path, {**position, "files": files}, to_yaml(to_plain(config)), may_differ)
        run = cls.__new__(cls)
        run._open(path, config, tensorboard)
        run._checksums, run.repairs = rewound
        run._parameters = position["parameters"]
        run._unsynced = {path, path / "config.yaml", path / "parameters.csv"} if run._parameters else {path}
        for sentence in run.repairs:
            run.log(sentence)
        return run

    def position(self) -> dict[str, Any]:
        """Write everything durably; return, as plain values, the checksum of every file, which `resume` needs."""
        self.flush()
        self.sync()
        return {"files": {name: c.to_record() for name, c in self._checksums.items()}, "parameters": self._parameters}

    def sync(self) -> None:
        """Wait until all records written so far would survive a power cut; views may lose their end."""
        with os_errors_as_user_errors(self.directory):
            for path in self._unsynced:
                fsync_path(path)
        self._unsynced.clear()

    def write_record(self, name: str, data: bytes) -> None:
        """Write one of the run's records atomically."""
        write_atomically(self.directory / name, data)
        self._checksums[name] = Checksum().plus(data)
        self._unsynced |= {self.directory / name, self.directory}

    def write_parameters(self, frame: "pd.DataFrame") -> None:
        """Write `parameters.csv`, one row per parameter as `initialize_` returns them."""
        data = frame_to_csv(frame)
        self._parameters = data.decode()
        self.write_record("parameters.csv", data)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics of one step; consecutive calls for one step make one row, a metric left out stays blank.

        Raises:
            UserError: a metric is unknown.
        """
        self.add_scalars_block([int(step)], {name: [float(value)] for name, value in values.items()})

    def add_scalars_block(
        self, steps: Sequence[int] | np.ndarray, values: Mapping[str, Sequence[float] | np.ndarray]
    ) -> None:
        """Add metrics of many ascending steps at once, which takes a few microseconds per step.

        Args:
            steps: the steps [n].
            values: metric -> values [n].

        Raises:
            UserError: a metric is unknown.
        """
        numbers = np.asarray(steps).tolist()
        if not numbers:
            return
        if unknown := [name for name in values if name not in METRICS]:
            hint = did_you_mean(unknown[0], METRICS)
            raise UserError(f"There is no metric {unknown[0]!r}; there are {', '.join(METRICS)}.{hint}")
        arrays = {name: np.asarray(column) for name, column in values.items()}
        columns = {name: array.tolist() for name, array in arrays.items()}
        if self._view:
            self._view.add_scalars_block(numbers, columns)
        first, last = ({name: column[place] for name, column in columns.items()} for place in (0, -1))
        self._add_row(numbers[0], first)
        if len(numbers) > 1:
            self._close_row()
            # Nine digits restore every float32; wider numbers are written as Python repeats them.
            formats = {name: "%.9g" if array.dtype == np.float32 else "%r" for name, array in arrays.items()}
            line = ",".join(["%d", *(formats.get(name, "") for name in METRICS)]) + "\n"
            ordered = [columns[name][1:-1] for name in METRICS if name in columns]
            rows = zip(numbers[1:-1], *ordered, strict=True)
            self._append("metrics.csv", "".join(map(line.__mod__, rows)).encode())
            self._open_row = (numbers[-1], last)
        self._flush_if_due()

    def add_layers(self, rows: Iterable[tuple[int, str, int, str, float, str]]) -> None:
        """Add rows of `layers.csv`, predicted or measured, each with the fields of a `LayerRow`."""
        plain = [LayerRow(int(s), layer, int(i), stat, float(v), source) for s, layer, i, stat, v, source in rows]
        self._append("layers.csv", csv_bytes(plain))
        if self._view:
            self._view.add_layers(plain)
        self._flush_if_due()

    def add_histograms(self, step: int, records: Mapping[tuple[str, int, str], Histogram]) -> None:
        """Add histograms by (tensor kind, layer index, layer name)."""
        rows = (
            (step, layer, index, kind, *map(vars(record).get, HISTOGRAM_NUMBERS), " ".join(map(str, record.counts)))
            for (kind, index, layer), record in records.items()
        )
        self._append("histograms.csv", csv_bytes(rows))
        if self._view:
            self._view.add_histograms(step, records)
        self._flush_if_due()

    def log(self, text: str) -> None:
        """Add a line to `run.log`, with the time before it."""
        self._append("run.log", encode_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable_lines(text)}\n"))
        self._flush_if_due()

    def read_losses(self) -> list[float]:
        """Return the training losses written so far, in the order of their steps; a blank is NaN."""
        self.flush()
        path = self.directory / "metrics.csv"
        if not path.exists():
            return []
        with os_errors_as_user_errors(self.directory), open(path, encoding="utf-8", newline="") as file:
            return [float(row["loss"] or "nan") for row in csv.DictReader(file)]

    def flush(self) -> None:
        """Append all buffered rows to their files and close them."""
        self._close_row()
        self._write()

    def finish(self, status: str, **fields: Any) -> None:
        """End the run: flush, then write `summary.json` with status, `fields`, versions and commit.

        The summary holds the checksums of the run's records and its own. Where the run is a result, it survives a power
        cut. JSON has no NaN: non-finite numbers are the texts "NaN", "Infinity" and "-Infinity", which `load` restores.
        """
        if self._view:
            final = {name: fields.get(name) for name in FINAL_METRICS}
            self._view.end(status == "completed", int(fields.get("steps") or 0), final)
        self.flush()
        durable = status in _DURABLE_STATUSES
        if durable:
            self.sync()
        files = {name: self._checksums[name].to_record() for name in RECORDS if name in self._checksums}
        about = {"environment": describe_environment(), "files": files, "config": self._config}
        summary = to_json({"format": SUMMARY_FORMAT, "status": status, **fields, **about})
        write_atomically(self.directory / "summary.json", append_checksum(summary), durable=durable)

    def _add_row(self, step: int, values: dict[str, float]) -> None:
        if self._open_row and self._open_row[0] == step:
            self._open_row[1].update(values)
        else:
            self._close_row()
            self._open_row = (step, values)

    def _close_row(self) -> None:
        """Append the row of metrics to which the next call could still have added."""
        if self._open_row:
            step, values = self._open_row
            self._open_row = None
            self._append("metrics.csv", csv_bytes([[step, *map(values.get, METRICS)]]))

    def _append(self, name: str, data: bytes) -> None:
        self._pending.setdefault(name, []).append(data)

    def _flush_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self._write()

    def _write(self) -> None:
        for name in list(self._pending):
            header = csv_bytes([TABLE_COLUMNS[name]]) if name in TABLE_COLUMNS else b""
            self._add_to_checksum(name, append_bytes(self.directory / name, b"".join(self._pending[name]), header))
            # One by one: when the next file fails, the rows of this one must not be written twice.
            del self._pending[name]
        if self._view:
            self._add_to_checksum(EVENT_FILE_NAME, self._view.flush())
        self._due = time.monotonic() + self._flush_seconds

    def _add_to_checksum(self, name: str, added: bytes) -> None:
        before = self._checksums.get(name, Checksum())
        self._checksums[name] = before.plus(added)
        if name in TABLE_COLUMNS:
            self._unsynced |= {self.directory / name} if before.size else {self.directory / name, self.directory}
