"""One TensorBoard event file: records are appended, the file is closed after each flush, and no thread is started.

The format is TFRecord: length, masked CRC of the length, an `Event` message, masked CRC of the message. TensorBoard's
own writer keeps a thread and an open file per run, counts its checksums in Python and raises on NaN or 1e20.
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


class EventFile:
    """Events of one run, kept in memory until `flush` appends them to `path` and closes it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []
        self._last = time.time()
        if not path.exists() or not path.stat().st_size:
            self._add(event_pb2.Event(wall_time=self._last, file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of one step as one event."""
        shown = [
            summary_pb2.Summary.Value(tag=tag, simple_value=_finite_or_nan(value)) for tag, value in values.items()
        ]
        self._values(step, shown)

    def scalars_block(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Add the scalars of many steps, one event each; their times are spread over the time since the last ones."""
        event = event_pb2.Event()
        places = [event.summary.value.add(tag=tag) for tag in columns]
        start, self._last = self._last, time.time()
        pause = (self._last - start) / max(1, len(steps))
        for count, (step, *values) in enumerate(zip(steps, *columns.values(), strict=True), start=1):
            event.step = step
            event.wall_time = start + count * pause
            for place, value in zip(places, values, strict=True):
                place.simple_value = _finite_or_nan(value)
            self._add(event)

    def histograms(self, step: int, records: Mapping[str, Histogram]) -> None:
        """Add histograms; one without a finite value draws nothing, and how many values were not finite is a scalar."""
        values = [
            summary_pb2.Summary.Value(tag=tag, histo=_histogram_proto(record))
            for tag, record in records.items()
            if record.num
        ]
        values += [
            summary_pb2.Summary.Value(tag=f"per_layer_nonfinite/{tag}", simple_value=record.nonfinite)
            for tag, record in records.items()
            if record.nonfinite
        ]
        self._values(step, values)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Add a text, shown as Markdown."""
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            string_val=[markdown.encode()],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
        )
        self._values(step, [summary_pb2.Summary.Value(tag=tag, metadata=_metadata("text"), tensor=tensor)])

    def image(self, tag: str, png: bytes, step: int = 0) -> None:
        """Add an image given as the bytes of a PNG file."""
        width, height = struct.unpack(">II", png[16:24])
        image = summary_pb2.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._values(step, [summary_pb2.Summary.Value(tag=tag, image=image)])

    def hparams(
        self, hparams: Mapping[str, bool | float | str], metrics: Mapping[str, str], first: Collection[str] = ()
    ) -> None:
        """Open the run's HParams session in this very file; `metrics` are tags of scalars logged anyway -> shown name.

        The page lists what `differs` before the rest, by the alphabet, and ticks five: `first` are those.
        `torch.utils.tensorboard.add_hparams` would make a second run of it.
        """
        types = {name: _hparam_type(value) for name, value in hparams.items()}
        infos = [api_pb2.HParamInfo(name=name, type=kind, differs=name in first) for name, kind in types.items()]
        named = [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=shown) for tag, shown in metrics.items()
        ]
        experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=named)
        begin = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams.items():
            setattr(begin.hparams[name], _HPARAM_FIELDS[types[name]], value)
        self._hparams("experiment", plugin_data_pb2.HParamsPluginData(experiment=experiment))
        self._hparams("session_start_info", plugin_data_pb2.HParamsPluginData(session_start_info=begin))

    def end_session(self, success: bool) -> None:
        """Close the HParams session."""
        status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        self._hparams("session_end_info", plugin_data_pb2.HParamsPluginData(session_end_info=end))

    def layout(self, charts: Mapping[str, Mapping[str, Iterable[str]]], opened: int = 1) -> None:
        """Set the Custom Scalars page, `{category: {chart title: patterns of tags together}}`; the last one holds.

        The first `opened` categories are open: the page reads a chart when its category is opened, for all runs.
        """
        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(
                    title=title,
                    closed=place >= opened,
                    chart=[
                        layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=list(patterns)))
                        for name, patterns in members.items()
                    ],
                )
                for place, (title, members) in enumerate(charts.items())
                if members
            ]
        )
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            string_val=[layout.SerializeToString()],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(),
        )
        value = summary_pb2.Summary.Value(
            tag="custom_scalars__config__", metadata=_metadata("custom_scalars"), tensor=tensor
        )
        self._values(0, [value])

    def flush(self) -> bytes:
        """Append what is pending, close the file and return what was appended.

        Raises:
            UserError: the file cannot be written or the disk is full; nothing half-written stays.
        """
        added = append_bytes(self.path, b"".join(self._pending)) if self._pending else b""
        self._pending.clear()
        return added

    def _hparams(self, part: str, data: plugin_data_pb2.HParamsPluginData) -> None:
        metadata = _metadata("hparams", data.SerializeToString())
        self._values(0, [summary_pb2.Summary.Value(tag=f"_hparams_/{part}", metadata=metadata, tensor=_NO_TENSOR)])

    def _values(self, step: int, values: list[summary_pb2.Summary.Value]) -> None:
        if values:
            self._last = time.time()
            self._add(event_pb2.Event(wall_time=self._last, step=step, summary=summary_pb2.Summary(value=values)))

    def _add(self, event: event_pb2.Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._pending += (length, _crc(length), data, _crc(data))


_NO_TENSOR = tensor_pb2.TensorProto(
    dtype=types_pb2.DT_FLOAT,
    tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=0)]),
)
_HPARAM_FIELDS = {
    api_pb2.DATA_TYPE_BOOL: "bool_value",
    api_pb2.DATA_TYPE_FLOAT64: "number_value",
    api_pb2.DATA_TYPE_STRING: "string_value",
}


def _finite_or_nan(value: float) -> float:
    """Return NaN for what float32 cannot hold: one infinity would cost TensorBoard's HParams page its whole axis."""
    return value if -_FLOAT32_MAX <= value <= _FLOAT32_MAX else _NAN


def _hparam_type(value: bool | float | str) -> int:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _metadata(plugin: str, content: bytes = b"") -> summary_pb2.SummaryMetadata:
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return summary_pb2.SummaryMetadata(plugin_data=data)


def _crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def intact_events(data: bytes) -> bytes:
    """Return the events of a damaged file that are whole: a reader stops at the first that is not, and shows no later.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = EventFile(Path(folder) / "events").flush()
    >>> intact_events(data) == data, intact_events(data + data[:-1]) == data
    (True, True)
    """
    kept, place = [], 0
    while data[place + 8 : place + 12] == _crc(data[place : place + 8]):
        start = place + 12
        end = start + struct.unpack_from("<Q", data, place)[0]
        if end + 4 > len(data):
            break
        if data[end : end + 4] == _crc(data[start:end]):
            kept.append(data[place : end + 4])
        place = end + 4
    return b"".join(kept)


def _histogram_proto(record: Histogram) -> histogram_pb2.HistogramProto:
    """Return the message; an empty first bucket ends at the minimum, else the first would begin at -infinity.

    Its many numbers are written as protobuf lays them out: set one by one, they take five times as long.
    """
    low, high = max(record.low, -_FLOAT32_MAX), min(record.high, _FLOAT32_MAX)
    width = high - low
    edges = np.append(low + width * _BUCKET_FRACTIONS, high) if width > 0 else np.array([low, low])
    counts = (0, *record.counts) if width > 0 else (0, record.num)
    found = histogram_pb2.HistogramProto(
        min=low, max=high, num=record.num, sum=record.sum, sum_squares=record.sum_squares
    )
    found.MergeFromString(
        _packed("bucket_limit", edges.astype("<f8").tobytes())
        + _packed("bucket", struct.pack(f"<{len(counts)}d", *counts))
    )
    return found


def _packed(field: str, numbers: bytes) -> bytes:
    """Return a repeated number of a histogram as protobuf writes it: which field, how many bytes, the bytes."""
    return _FIELDS[field] + _varint(len(numbers)) + numbers


def _varint(number: int) -> bytes:
    """Return a whole number as protobuf writes it: seven bits to a byte, the lowest first.

    >>> list(_varint(520))
    [136, 4]
    """
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


_BUCKET_FRACTIONS = np.arange(BUCKETS) / BUCKETS
_BYTES_FOLLOW = 2  # protobuf's name of what has a length
_FIELDS = {
    name: _varint(histogram_pb2.HistogramProto.DESCRIPTOR.fields_by_name[name].number << 3 | _BYTES_FOLLOW)
    for name in ("bucket_limit", "bucket")
}
