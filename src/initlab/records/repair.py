"""What a resumed run can mend of its own directory: the configuration it records, and the ends of its views."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from initlab.records.checksums import TABLES, WEIGHTS, Sum, damage, first_damage, unsealed
from initlab.records.columns import flatten
from initlab.records.event_file import whole_events
from initlab.records.serialization import from_json, from_yaml, to_yaml
from initlab.system.files import cut, door, replace
from initlab.system.safe_reading import TABLE, read_bytes

NAMED = 3  # keys that a sentence names
EVENTS = "events.out.tfevents.initlab"
VIEWS = ("run.log", EVENTS)


def lost(path: Path, position: Mapping[str, Any]) -> str:
    """Return why a run cannot go on where `RunWriter.position` was taken, or an empty string; nothing is written.

    Only what a result rests on counts, tables and weights; the rest is what `mended` can write again.
    """
    files = position["files"]
    with door(path):
        found = (damage(path / name, files[name], may_be_longer=True) for name in (*TABLES, *WEIGHTS) if name in files)
        return next(filter(None, found), "")


def mended(
    path: Path, position: Mapping[str, Any], settled: bytes, may_differ: Callable[[str], bool]
) -> tuple[dict[str, Sum], list[str]]:
    """Cut the files of a run back to a position, and write again what is damaged; return checksums, and what to say.

    Arguments: `settled` is the run's own configuration as YAML, written whatever the directory records;
    `may_differ(key)` says which keys may be recorded otherwise without a remark.
    """
    files, said = position["files"], []
    sums = {name: Sum.of(record) for name, record in files.items()}
    with door(path):
        (path / "summary.json").unlink(missing_ok=True)
        said += mend_config(path / "config.yaml", settled, may_differ)
        replace(path / "config.yaml", settled)
        sums["config.yaml"] = Sum().plus(settled)
        if position["parameters"] and damage(path / "parameters.csv", files["parameters.csv"]):
            replace(path / "parameters.csv", position["parameters"].encode())
            said.append("parameters.csv was changed or missing: it was written again")
        for name in VIEWS:
            sums[name], remark = mend_view(path / name, files.get(name))
            said += [remark] if remark else []
    for name in TABLES:
        cut(path / name, files.get(name, {"bytes": 0})["bytes"])
    return sums, said


def mend_config(path: Path, settled: bytes, may_differ: Callable[[str], bool]) -> list[str]:
    """Return what to say of a recorded configuration that is not the run's own; the caller writes that again.

    Arguments: `settled` is the configuration of the run as YAML; `may_differ` is asked about dotted keys.
    """
    again = "it was written again from the configuration of this launch"
    try:
        data = read_bytes(path)
        if data == settled:
            return []
        recorded = flatten(from_yaml(data))
    except FileNotFoundError:
        return [f"{path} was missing: {again}"]
    except (OSError, ValueError):
        return [f"{path} could not be read: {again}"]
    own = flatten(from_yaml(settled))
    keys = [key for key in {**own, **recorded} if not same(own, recorded, key)]
    differing = [key for key in keys if not may_differ(key)]
    if keys and not differing:
        return []
    told = "; ".join(f"{key}: {shown(recorded, key)} for {shown(own, key)}" for key in differing[:NAMED])
    return [f"{path} was changed ({told or 'its text'}): {again}"]


def same(own: dict[str, Any], recorded: dict[str, Any], key: str) -> bool:
    """Are the values of a key the same, of the same type?"""
    return key in own and key in recorded and repr(own[key]) == repr(recorded[key])


def shown(values: dict[str, Any], key: str) -> str:
    """Return a value as a sentence shows it."""
    return repr(values[key])[:60] if key in values else "nothing"


def rewrite_config(directory: Path) -> bool:
    """Write the configuration of a finished run again from its summary; return whether nothing else is damaged.

    Raises UserError when it cannot be written.
    """
    data = read_bytes(directory / "summary.json")
    summary = unsealed(from_json(data), data)
    text, files = to_yaml(summary["config"]), summary["files"]
    if Sum().plus(text).record() != files["config.yaml"]:
        return False
    replace(directory / "config.yaml", text, durable=True)
    return not first_damage(directory, files)


def mend_view(path: Path, record: Any) -> tuple[Sum, str]:
    """Cut a view back to a position; where it is damaged before that, keep what is whole and say so.

    Arguments: its checksum at that position, None where there was no such file yet.

    Returns its checksum now, and what to say.
    """
    if record is None:
        path.unlink(missing_ok=True)
        return Sum(), ""
    if not (found := damage(path, record, may_be_longer=True)):
        cut(path, record["bytes"])
        return Sum.of(record), ""
    regular = path.is_file() and not path.is_symlink()
    data = read_bytes(path, TABLE)[: record["bytes"]] if regular else b""
    whole = whole_lines(data) if path.suffix == ".log" else whole_events(data)
    path.unlink(missing_ok=True)
    if whole:
        replace(path, whole)
    return Sum().plus(whole), f"{found}: {len(whole)} of its {record['bytes']} bytes were kept"


def whole_lines(data: bytes) -> bytes:
    """Return the whole lines of a text, without those that a power cut filled with zeros.

    >>> whole_lines(b"one\\ntwo\\n\\0\\0\\0")
    b'one\\ntwo\\n'
    """
    return b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if b"\0" not in line)


def drawn_since(table: Path, directory: Path) -> bool:
    """Is the event file of a directory newer than a table? Then TensorBoard shows that table already."""
    try:
        return (directory / EVENTS).stat().st_mtime_ns >= table.stat().st_mtime_ns
    except OSError:
        return False
