"""What a resumed run can mend of its own directory: the configuration it records, and the ends of its views."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from initlab.records.checksums import TABLES, WEIGHTS, Checksum, find_damage, find_run_damage, verify_checksum
from initlab.records.columns import flatten
from initlab.records.event_file import intact_events
from initlab.records.serialization import from_json, from_yaml, to_yaml
from initlab.system.files import os_errors_as_user_errors, truncate_file, write_atomically
from initlab.system.safe_reading import MAX_TABLE_BYTES, read_bytes

MAX_NAMED_KEYS = 3  # keys that a sentence names
EVENT_FILE_NAME = "events.out.tfevents.initlab"
VIEW_FILES = ("run.log", EVENT_FILE_NAME)


def find_resume_problem(path: Path, position: Mapping[str, Any]) -> str:
    """Return why a run cannot go on where `RunWriter.position` was taken, or an empty string; nothing is written.

    Only what a result rests on counts, tables and weights; the rest is what `rewind_run` can write again.
    """
    files = position["files"]
    with os_errors_as_user_errors(path):
        found = (
            find_damage(path / name, files[name], may_be_longer=True) for name in (*TABLES, *WEIGHTS) if name in files
        )
        return next(filter(None, found), "")


def rewind_run(
    path: Path, position: Mapping[str, Any], settled: bytes, may_differ: Callable[[str], bool]
) -> tuple[dict[str, Checksum], list[str]]:
    """Cut the files of a run back to a position, and write again what is damaged; return checksums, and what to say.

    Arguments: `settled` is the run's own configuration as YAML, written whatever the directory records;
    `may_differ(key)` says which keys may be recorded otherwise without a remark.
    """
    files, said = position["files"], []
    sums = {name: Checksum.of(record) for name, record in files.items()}
    with os_errors_as_user_errors(path):
        (path / "summary.json").unlink(missing_ok=True)
        said += describe_config_changes(path / "config.yaml", settled, may_differ)
        write_atomically(path / "config.yaml", settled)
        sums["config.yaml"] = Checksum().plus(settled)
        if position["parameters"] and find_damage(path / "parameters.csv", files["parameters.csv"]):
            write_atomically(path / "parameters.csv", position["parameters"].encode())
            said.append("parameters.csv was changed or missing: it was written again")
        for name in VIEW_FILES:
            sums[name], remark = rewind_view(path / name, files.get(name))
            said += [remark] if remark else []
    for name in TABLES:
        truncate_file(path / name, files.get(name, {"bytes": 0})["bytes"])
    return sums, said


def describe_config_changes(path: Path, settled: bytes, may_differ: Callable[[str], bool]) -> list[str]:
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
    keys = [key for key in {**own, **recorded} if not same_value(own, recorded, key)]
    differing = [key for key in keys if not may_differ(key)]
    if keys and not differing:
        return []
    told = "; ".join(
        f"{key}: {short_repr(recorded, key)} for {short_repr(own, key)}" for key in differing[:MAX_NAMED_KEYS]
    )
    return [f"{path} was changed ({told or 'its text'}): {again}"]


def same_value(own: dict[str, Any], recorded: dict[str, Any], key: str) -> bool:
    """Are the values of a key the same, of the same type?"""
    return key in own and key in recorded and repr(own[key]) == repr(recorded[key])


def short_repr(values: dict[str, Any], key: str) -> str:
    """Return a value as a sentence shows it."""
    return repr(values[key])[:60] if key in values else "nothing"


def rewrite_config(directory: Path) -> bool:
    """Write the configuration of a finished run again from its summary; return whether nothing else is damaged.

    Raises UserError when it cannot be written.
    """
    data = read_bytes(directory / "summary.json")
    summary = verify_checksum(from_json(data), data)
    text, files = to_yaml(summary["config"]), summary["files"]
    if Checksum().plus(text).record() != files["config.yaml"]:
        return False
    write_atomically(directory / "config.yaml", text, durable=True)
    return not find_run_damage(directory, files)


def rewind_view(path: Path, record: Any) -> tuple[Checksum, str]:
    """Cut a view back to a position; where it is damaged before that, keep what is whole and say so.

    Arguments: its checksum at that position, None where there was no such file yet.

    Returns its checksum now, and what to say.
    """
    if record is None:
        path.unlink(missing_ok=True)
        return Checksum(), ""
    if not (found := find_damage(path, record, may_be_longer=True)):
        truncate_file(path, record["bytes"])
        return Checksum.of(record), ""
    regular = path.is_file() and not path.is_symlink()
    data = read_bytes(path, MAX_TABLE_BYTES)[: record["bytes"]] if regular else b""
    whole = intact_lines(data) if path.suffix == ".log" else intact_events(data)
    path.unlink(missing_ok=True)
    if whole:
        write_atomically(path, whole)
    return Checksum().plus(whole), f"{found}: {len(whole)} of its {record['bytes']} bytes were kept"


def intact_lines(data: bytes) -> bytes:
    """Return the whole lines of a text, without those that a power cut filled with zeros.

    >>> intact_lines(b"one\\ntwo\\n\\0\\0\\0")
    b'one\\ntwo\\n'
    """
    return b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if b"\0" not in line)


def is_event_file_newer(table: Path, directory: Path) -> bool:
    """Is the event file of a directory newer than a table? Then TensorBoard shows that table already."""
    try:
        return (directory / EVENT_FILE_NAME).stat().st_mtime_ns >= table.stat().st_mtime_ns
    except OSError:
        return False
