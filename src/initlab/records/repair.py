"""Repairs that a resumed run makes in its own directory: the configuration it records, and the ends of its views."""

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
    """Return why a run cannot be resumed at a position of `RunWriter.position`, or ""; write nothing.

    Only tables and weights count, on which a result rests; `rewind_run` writes the other files again.
    """
    files = position["files"]
    with os_errors_as_user_errors(path):
        for name in (*TABLES, *WEIGHTS):
            if name in files and (damage := find_damage(path / name, files[name], may_be_longer=True)):
                return damage
    return ""


def rewind_run(
    path: Path, position: Mapping[str, Any], config: bytes, may_differ: Callable[[str], bool]
) -> tuple[dict[str, Checksum], list[str]]:
    """Cut the files of a run back to a position, and write damaged ones again.

    Args:
        path: the run's directory.
        position: as `RunWriter.position` returned it.
        config: the run's own configuration as YAML, written whatever the directory records.
        may_differ: whether a dotted key may be recorded with another value without a remark.

    Returns:
        The checksums of all files by name, and a sentence for every repair.
    """
    files, repairs = position["files"], []
    checksums = {name: Checksum.from_record(record) for name, record in files.items()}
    with os_errors_as_user_errors(path):
        (path / "summary.json").unlink(missing_ok=True)
        repairs += describe_config_changes(path / "config.yaml", config, may_differ)
        write_atomically(path / "config.yaml", config)
        checksums["config.yaml"] = Checksum().plus(config)
        if position["parameters"] and find_damage(path / "parameters.csv", files["parameters.csv"]):
            write_atomically(path / "parameters.csv", position["parameters"].encode())
            repairs.append("parameters.csv was changed or missing: it was written again")
        for name in VIEW_FILES:
            checksums[name], repair = rewind_view(path / name, files.get(name))
            repairs += [repair] if repair else []
    for name in TABLES:
        truncate_file(path / name, files.get(name, {"bytes": 0})["bytes"])
    return checksums, repairs


def describe_config_changes(path: Path, config: bytes, may_differ: Callable[[str], bool]) -> list[str]:
    """Return a sentence about a recorded configuration that is not the run's own, [] where there is nothing to say.

    Args:
        path: the recorded `config.yaml`, which the caller writes again.
        config: the run's own configuration as YAML.
        may_differ: whether a dotted key may have another value.
    """
    again = "it was written again from the configuration of this launch"
    try:
        data = read_bytes(path)
        if data == config:
            return []
        recorded = flatten(from_yaml(data))
    except FileNotFoundError:
        return [f"{path} was missing: {again}"]
    except (OSError, ValueError):
        return [f"{path} could not be read: {again}"]
    own = flatten(from_yaml(config))
    before, now = ({key: repr(value)[:60] for key, value in values.items()} for values in (recorded, own))
    keys = [key for key in {**own, **recorded} if repr(own.get(key, ...)) != repr(recorded.get(key, ...))]
    unexpected = [key for key in keys if not may_differ(key)]
    if keys and not unexpected:
        return []
    changes = "; ".join(
        f"{key}: {before.get(key, 'nothing')} for {now.get(key, 'nothing')}" for key in unexpected[:MAX_NAMED_KEYS]
    )
    return [f"{path} was changed ({changes or 'its text'}): {again}"]


def rewrite_config(directory: Path) -> bool:
    """Write the configuration of a finished run again from its summary; return whether all its records are intact now.

    Raises:
        UserError: the file cannot be written.
    """
    data = read_bytes(directory / "summary.json")
    summary = verify_checksum(from_json(data), data)
    config, files = to_yaml(summary["config"]), summary["files"]
    if Checksum().plus(config).to_record() != files["config.yaml"]:
        return False
    write_atomically(directory / "config.yaml", config, durable=True)
    return not find_run_damage(directory, files)


def rewind_view(path: Path, record: Any) -> tuple[Checksum, str]:
    """Cut a view back to a position; of a view that is damaged before that position keep what is intact.

    Args:
        path: the file.
        record: its checksum at that position, None where there was no such file yet.

    Returns:
        Its checksum now, and a sentence about the damage ("" for an intact file).
    """
    if record is None:
        path.unlink(missing_ok=True)
        return Checksum(), ""
    if not (damage := find_damage(path, record, may_be_longer=True)):
        truncate_file(path, record["bytes"])
        return Checksum.from_record(record), ""
    regular = path.is_file() and not path.is_symlink()
    data = read_bytes(path, MAX_TABLE_BYTES)[: record["bytes"]] if regular else b""
    intact = intact_lines(data) if path.suffix == ".log" else intact_events(data)
    path.unlink(missing_ok=True)
    if intact:
        write_atomically(path, intact)
    return Checksum().plus(intact), f"{damage}: {len(intact)} of its {record['bytes']} bytes were kept"


def intact_lines(data: bytes) -> bytes:
    """Return the whole lines of a text, without those that a power cut filled with zeros.

    >>> intact_lines(b"one\\ntwo\\n\\0\\0\\0")
    b'one\\ntwo\\n'
    """
    return b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if b"\0" not in line)


def is_event_file_newer(table: Path, directory: Path) -> bool:
    """Return whether the event file of a directory is newer than a table, so that TensorBoard shows that table already.

    A file that is missing is not newer.
    """
    try:
        return (directory / EVENT_FILE_NAME).stat().st_mtime_ns >= table.stat().st_mtime_ns
    except OSError:
        return False
