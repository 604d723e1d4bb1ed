"""One TensorBoard event file: events are appended, the file is closed after each flush, and no thread is started.

The format is TFRecord: length, masked CRC of the length, an `Event` message, masked CRC of the message. TensorBoard's
own writer keeps a thread and an open file per run, computes its checksums in Python and raises on NaN or 1e20.

This file alone imports `tensorboard`: messages of `tensorboard.compat.proto` and of its plugins, none of which is
documented (seen in TensorBoard 2.21).
"""

import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from tensorboard.compat.proto import event_pb2, histogram_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from initlab.statistics.histograms import BUCKETS, Histogram
from initlab.system.files import append_bytes

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NAN = float("nan")
_BUCKET_FRACTIONS = np.arange(BUCKETS) / BUCKETS
_HPARAM_FIELDS = {
    bool: (api_pb2.DATA_TYPE_BOOL, "bool_value"),
    int: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    float: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    str: (api_pb2.DATA_TYPE_STRING, "string_value"),
}
_Value = summary_pb2.Summary.Value


class EventFile:
    """Events of one run, kept in memory until `flush` appends them to a file and closes it again.

    Args:
        path: the event file; made by the first `flush`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []
        self._last_time = time.time()
        if not path.exists() or not path.stat().st_size:
            self._add_event(event_pb2.Event(wall_time=self._last_time, file_version="brain.Event:2"))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of one step as one event."""
        self._add_values(step, [_Value(tag=tag, simple_value=_finite_or_nan(value)) for tag, value in values.items()])

    def add_scalars_block(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Add the scalars of many steps, one event each; their times are spread over the time since the last event."""
        event = event_pb2.Event()
        messages = [event.summary.value.add(tag=tag) for tag in columns]
        start, self._last_time = self._last_time, time.time()
        interval = (self._last_time - start) / max(1, len(steps))
        for count, (step, *values) in enumerate(zip(steps, *columns.values(), strict=True), start=1):
            event.step = step
            event.wall_time = start + count * interval
            for message, value in zip(messages, values, strict=True):
                message.simple_value = _finite_or_nan(value)
            self._add_event(event)

    def add_histograms(self, step: int, records: Mapping[str, Histogram]) -> None:
        """Add histograms of the finite values, and a scalar for each tensor with non-finite values: their number."""
        values = [_Value(tag=tag, histo=_histogram_proto(record)) for tag, record in records.items() if record.num]
        values += [
            _Value(tag=f"per_layer_nonfinite/{tag}", simple_value=record.nonfinite)
            for tag, record in records.items()
            if record.nonfinite
        ]
        self._add_values(step, values)

    def add_text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Add a text, shown as Markdown."""
        self._add_values(step, [_Value(tag=tag, metadata=_metadata("text"), tensor=_text_tensor(markdown.encode(), 1))])

    def add_image(self, tag: str, png: bytes, step: int = 0) -> None:
        """Add an image, given as the bytes of a PNG file."""
        width, height = struct.unpack(">II", png[16:24])
        image = summary_pb2.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add_values(step, [_Value(tag=tag, image=image)])

    def add_hparams(
        self, hparams: Mapping[str, bool | float | str], metrics: Mapping[str, str], first: Collection[str] = ()
    ) -> None:
        """Open the run's HParams session in this file (`torch.utils.tensorboard.add_hparams` makes a second run).

        Args:
            hparams: name -> value.
            metrics: tag of a scalar that the run logs anyway -> displayed name.
            first: hparams to be shown at once: the page lists those with `differs` first and ticks five.
        """
        fields = {name: _HPARAM_FIELDS[type(value)] for name, value in hparams.items()}
        experiment = api_pb2.Experiment(
            hparam_infos=[
                api_pb2.HParamInfo(name=name, type=kind, differs=name in first) for name, (kind, _) in fields.items()
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name) for tag, name in metrics.items()
            ],
        )
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams.items():
            setattr(start.hparams[name], fields[name][1], value)
        self._add_hparams_message(experiment=experiment)
        self._add_hparams_message(session_start_info=start)

    def end_session(self, success: bool) -> None:
        """Close the HParams session."""
        status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        self._add_hparams_message(session_end_info=end)

    def set_layout(self, charts: Mapping[str, Mapping[str, Iterable[str]]], opened: int = 1) -> None:
        """Set the Custom Scalars page; the last call counts.

        Args:
            charts: category -> chart title -> patterns of the tags that it shows together.
            opened: how many categories are open: the page loads a chart, for all runs, when its category is opened.
        """
        layout = layout_pb2.Layout()
        for place, (title, members) in enumerate(charts.items()):
            if members:
                category = layout.category.add(title=title, closed=place >= opened)
                for name, patterns in members.items():
                    category.chart.add(title=name).multiline.tag.extend(patterns)
        tensor = _text_tensor(layout.SerializeToString())
        self._add_values(
            0, [_Value(tag="custom_scalars__config__", metadata=_metadata("custom_scalars"), tensor=tensor)]
        )

    def flush(self) -> bytes:
        """Append what is pending, close the file and return what was appended.

        Raises:
            UserError: the file cannot be written or the disk is full; nothing half-written stays.
        """
        added = append_bytes(self.path, b"".join(self._pending)) if self._pending else b""
        self._pending.clear()
        return added

    def _add_hparams_message(self, **content: object) -> None:
        data = plugin_data_pb2.HParamsPluginData(**content).SerializeToString()
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=_shape(0))
        tag = f"_hparams_/{next(iter(content))}"
        self._add_values(0, [_Value(tag=tag, metadata=_metadata("hparams", data), tensor=tensor)])

    def _add_values(self, step: int, values: list[summary_pb2.Summary.Value]) -> None:
        if values:
            self._last_time = time.time()
            summary = summary_pb2.Summary(value=values)
            self._add_event(event_pb2.Event(wall_time=self._last_time, step=step, summary=summary))

    def _add_event(self, event: event_pb2.Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._pending += (length, _crc(length), data, _crc(data))


def _finite_or_nan(value: float) -> float:
    """Return NaN for what float32 cannot hold: one infinity would spoil the axis of TensorBoard's HParams page."""
    return value if -_FLOAT32_MAX <= value <= _FLOAT32_MAX else _NAN


def _shape(*sizes: int) -> tensor_shape_pb2.TensorShapeProto:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes])


def _text_tensor(text: bytes, *sizes: int) -> tensor_pb2.TensorProto:
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text], tensor_shape=_shape(*sizes))


def _metadata(plugin: str, content: bytes = b"") -> summary_pb2.SummaryMetadata:
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return summary_pb2.SummaryMetadata(plugin_data=data)


def _crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def intact_events(data: bytes) -> bytes:
    """Return the intact events of a damaged file: a reader stops at the first damaged one and shows no later one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = EventFile(Path(folder) / "events").flush()
    >>> intact_events(data) == data, intact_events(data + data[:-1]) == data
    (True, True)
    """
    intact, place = [], 0
    while data[place + 8 : place + 12] == _crc(data[place : place + 8]):
        start = place + 12
        end = start + struct.unpack_from("<Q", data, place)[0]
        if end + 4 > len(data):
            break
        if data[end : end + 4] == _crc(data[start:end]):
            intact.append(data[place : end + 4])
        place = end + 4
    return b"".join(intact)


def _histogram_proto(record: Histogram) -> histogram_pb2.HistogramProto:
    """Return the message; an empty first bucket ends at the minimum, else the first one would begin at -infinity."""
    low, high = max(record.low, -_FLOAT32_MAX), min(record.high, _FLOAT32_MAX)
    limits, counts = [low, low], [0, record.num]
    if low < high:
        limits = [*(low + (high - low) * _BUCKET_FRACTIONS).tolist(), high]
        counts = [0, *record.counts]
    return histogram_pb2.HistogramProto(
        min=low,
        max=high,
        num=record.num,
        sum=record.sum,
        sum_squares=record.sum_squares,
        bucket_limit=limits,
        bucket=counts,
    )
