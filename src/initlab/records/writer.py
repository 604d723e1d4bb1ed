"""The writer of a run directory: the CSV files are the record, TensorBoard is the view, `summary.json` comes last."""

import csv
import io
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.errors import UserError, did_you_mean
from initlab.records.checksums import RECORDS, SUMMARY_FORMAT, TABLES, WEIGHTS, Checksum, append_checksum
from initlab.records.columns import HISTOGRAM_COLUMNS, LAYER_COLUMNS, METRICS, escape_formula, frame_to_csv
from initlab.records.environment import describe_environment
from initlab.records.repair import EVENT_FILE_NAME, VIEW_FILES, find_resume_problem, rewind_run
from initlab.records.serialization import encode_text, to_json, to_plain, to_yaml
from initlab.records.tensorboard import LayerRow, TensorBoardView
from initlab.statistics.histograms import Histogram
from initlab.system.escape import printable_lines
from initlab.system.files import append_bytes, fsync_path, os_errors_as_user_errors, write_atomically

if TYPE_CHECKING:
    import pandas as pd

_TABLE_COLUMNS = dict(zip(TABLES, (("step", *METRICS), LAYER_COLUMNS, HISTOGRAM_COLUMNS), strict=True))
_FINAL = tuple(name for name in METRICS if name not in ("lr", "grad_norm"))
_APPENDED_FILES = (*TABLES, *VIEW_FILES)
_DURABLE_STATUSES = ("completed", "diverged")  # other runs are tried again by the next launch


class RunWriter:
    """Everything one run leaves behind, appended in small pieces to files that are closed again at once.

    Rows wait in memory until `flush`, or until `flush_seconds` have passed when the next ones come. NaN and infinities
    are values like any other.

    Args:
        directory: the run's own directory; made if need be. What an earlier attempt left in it is removed.
        config: the resolved configuration as nested dictionaries; written first, as `config.yaml`.
        hparams: what TensorBoard's HParams page compares runs by.
        first: those that it shows without being asked.
        metrics: which of the final metrics of `finish` that page shows; leave out what this run never measures.
        tensorboard: whether to write an event file beside the CSV files.
        flush_seconds: how long rows may wait.

    Raises:
        UserError: the directory cannot be written or its disk is full (so do all methods that write).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunWriter(Path(folder) / "a", {"init": {"name": "zeros"}, "depth": 3}, hparams={"depth": 3})
    ...     run.scalars(0, {"loss": 2.3})
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
        settled = to_plain(config)
        with os_errors_as_user_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            for name in ("summary.json", "parameters.csv", *WEIGHTS, *_APPENDED_FILES):
                (path / name).unlink(missing_ok=True)
        self._begin(path, settled, tensorboard, flush_seconds)
        self.whole("config.yaml", to_yaml(settled))
        self._unsynced.add(path.parent)
        if self._view:
            self._view.begin(settled, hparams or {}, metrics, first)
        self.flush()

    def _begin(self, directory: Path, config: dict[str, Any], tensorboard: bool, flush_seconds: float) -> None:
        self.directory = directory
        self.mended: list[str] = []
        self._config = config
        self._sums: dict[str, Checksum] = {}
        self._parameters = ""
        self._unsynced: set[Path] = set()
        self._pending: dict[str, list[str]] = {}
        self._row: tuple[int, dict[str, Any]] | None = None
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
        tensorboard: bool | None = None,
        may_differ: Callable[[str], bool] = lambda _: False,
        flush_seconds: float = 2.0,
    ) -> "RunWriter":
        """Go on where `position` was taken: every file is cut back to it, what came later is gone.

        What had to be mended is in `rewind_run`, one sentence each, and in the log.

        Args:
            directory: the run's own directory.
            position: what `position()` returned.
            config: the resolved configuration; written again, whatever the directory records.
            may_differ: whether a dotted key of the configuration may differ from the recorded one without a remark.
            flush_seconds: how long rows may wait.
            tensorboard: whether there is an event file, which is a view and no record; by default, whether there was.

        Raises:
            UserError: a table is shorter than at that position, or was changed since.
        """
        path = Path(directory)
        if found := find_resume_problem(path, position):
            raise UserError(f"{path}: {found}: delete {path} and run this cell again.")
        viewed = EVENT_FILE_NAME in position["files"] if tensorboard is None else tensorboard
        position = {**position, "files": {k: v for k, v in position["files"].items() if viewed or k != EVENT_FILE_NAME}}
        settled = to_plain(config)
        sums, said = rewind_run(path, position, to_yaml(settled), may_differ)
        run = cls.__new__(cls)
        run._begin(path, settled, viewed, flush_seconds)
        run._sums, run._parameters, run.mended = sums, position["parameters"], said
        run._unsynced = {path, path / "config.yaml", path / "parameters.csv"} if run._parameters else {path}
        for sentence in run.mended:
            run.log(sentence)
        return run

    def position(self) -> dict[str, Any]:
        """Write all that waits, durably, and return what `resume` needs in plain values: the checksum of every file."""
        self.flush()
        self.sync()
        return {"files": {name: done.record() for name, done in self._sums.items()}, "parameters": self._parameters}

    def sync(self) -> None:
        """Return when all records written so far would survive a power cut; views may lose their end."""
        with os_errors_as_user_errors(self.directory):
            for path in self._unsynced:
                fsync_path(path)
        self._unsynced.clear()

    def whole(self, name: str, data: bytes) -> None:
        """Write one of the run's records whole or not at all."""
        write_atomically(self.directory / name, data)
        self._sums[name] = Checksum().plus(data)
        self._unsynced |= {self.directory / name, self.directory}

    def parameters(self, frame: "pd.DataFrame") -> None:
        """Write `parameters.csv`, one row per parameter as `initialize_` returns them."""
        data = frame_to_csv(frame)
        self._parameters = data.decode()
        self.whole("parameters.csv", data)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics of one step; consecutive calls for the same step make one row, a metric left out stays blank."""
        numbers = {_check_metric(name): float(value) for name, value in values.items()}
        if self._view:
            self._view.scalars(step, numbers)
        self._one(int(step), numbers)
        self._flush_if_due()

    def scalars_block(
        self, steps: Sequence[int] | np.ndarray, values: Mapping[str, Sequence[float] | np.ndarray]
    ) -> None:
        """Add metrics of many ascending steps at once: arrays [len(steps)] by name, a few microseconds per step."""
        numbers = np.asarray(steps).tolist()
        if not numbers:
            return
        arrays = {_check_metric(name): np.asarray(column) for name, column in values.items()}
        columns = {name: array.tolist() for name, array in arrays.items()}
        if self._view:
            self._view.scalars_block(numbers, columns)
        first, last = ({name: column[place] for name, column in columns.items()} for place in (0, -1))
        self._one(numbers[0], first)
        if len(numbers) > 1:
            self._emit()
            # Nine digits restore every float32; what is wider is written as Python repeats it.
            cells = {name: "%.9g" if array.dtype == np.float32 else "%r" for name, array in arrays.items()}
            line = ",".join(["%d", *(cells.get(name, "") for name in METRICS)]) + "\n"
            ordered = [columns[name][1:-1] for name in METRICS if name in columns]
            self._pend("metrics.csv", map(line.__mod__, zip(numbers[1:-1], *ordered, strict=True)))
            self._row = (numbers[-1], last)
        self._flush_if_due()

    def layers(self, rows: Iterable[LayerRow]) -> None:
        """Add rows (step, layer, index, stat, value, source) of `layers.csv`, predicted or measured."""
        rows = [(int(s), layer, int(i), stat, float(v), source) for s, layer, i, stat, v, source in rows]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerows((s, escape_formula(layer), i, stat, v, source) for s, layer, i, stat, v, source in rows)
        self._pend("layers.csv", [text.getvalue()])
        if self._view:
            self._view.layers(rows)
        self._flush_if_due()

    def histograms(self, step: int, records: Mapping[tuple[str, int, str], Histogram]) -> None:
        """Add histograms by (tensor kind, layer index, layer name)."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            (step, escape_formula(layer), index, kind, h.low, h.high, h.num, h.nonfinite, h.sum, h.sum_squares,
             " ".join(map(str, h.counts)))
            for (kind, index, layer), h in records.items()
        )  # fmt: skip
        self._pend("histograms.csv", [text.getvalue()])
        if self._view:
            self._view.histograms(step, records)
        self._flush_if_due()

    def log(self, text: str) -> None:
        """Add a line to `run.log` with the time before it."""
        self._pend("run.log", [f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable_lines(text)}\n"])
        self._flush_if_due()

    def losses(self) -> list[float]:
        """Return the training losses written so far, in the order of their steps; a blank is NaN."""
        self.flush()
        path = self.directory / "metrics.csv"
        if not path.exists():
            return []
        with os_errors_as_user_errors(self.directory), open(path, encoding="utf-8", newline="") as file:
            return [float(row["loss"] or "nan") for row in csv.DictReader(file)]

    def flush(self) -> None:
        """Append all that waits to its files and close them."""
        self._emit()
        self._write()

    def finish(self, status: str, **fields: Any) -> None:
        """End the run: everything else first, then `summary.json` with the status, `fields`, versions and commit.

        It holds the checksums of the run's records and its own, and survives a power cut where the run is a result.
        JSON knows no NaN: non-finite numbers are the texts "NaN", "Infinity" and "-Infinity", which `load` turns back.
        """
        if self._view:
            last = fields.get("steps") or 0
            self._view.end(status == "completed", int(last), {name: fields.get(name) for name in _FINAL})
        self.flush()
        durable = status in _DURABLE_STATUSES
        if durable:
            self.sync()
        files = {name: self._sums[name].record() for name in RECORDS if name in self._sums}
        about = {"environment": describe_environment(), "files": files, "config": self._config}
        summary = to_json({"format": SUMMARY_FORMAT, "status": status, **fields, **about})
        write_atomically(self.directory / "summary.json", append_checksum(summary), durable=durable)

    def _one(self, step: int, values: dict[str, Any]) -> None:
        if self._row and self._row[0] == step:
            self._row[1].update(values)
        else:
            self._emit()
            self._row = (step, values)

    def _emit(self) -> None:
        """Turn the row that is still open into a line."""
        if self._row:
            step, values = self._row
            self._row = None
            self._pend(
                "metrics.csv", [",".join([str(step), *(_number_text(values.get(name)) for name in METRICS)]) + "\n"]
            )

    def _pend(self, name: str, lines: Iterable[str]) -> None:
        self._pending.setdefault(name, []).extend(lines)

    def _flush_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self._write()

    def _write(self) -> None:
        for name in list(self._pending):
            header, data = ",".join(_TABLE_COLUMNS.get(name, ())), encode_text("".join(self._pending[name]))
            self._count(name, append_bytes(self.directory / name, data, f"{header}\n".encode() if header else b""))
            # One by one: when the next file fails, what this one already has must not be written twice.
            del self._pending[name]
        if self._view:
            self._count(EVENT_FILE_NAME, self._view.flush())
        self._due = time.monotonic() + self._flush_seconds

    def _count(self, name: str, added: bytes) -> None:
        """Note what was appended to a file."""
        before = self._sums.get(name, Checksum())
        self._sums[name] = before.plus(added)
        if name in _TABLE_COLUMNS:
            self._unsynced |= {self.directory / name} if before.size else {self.directory / name, self.directory}


def _check_metric(metric: str) -> str:
    if metric not in METRICS:
        raise UserError(
            f"There is no metric {metric!r}; there are {', '.join(METRICS)}.{did_you_mean(metric, METRICS)}"
        )
    return metric


def _number_text(value: float | None) -> str:
    return "" if value is None else repr(value)
