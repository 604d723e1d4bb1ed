"""Files that somebody else wrote: one bad file costs its own run, whatever is in it, and leads to no other place."""

import ast
import json
import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_sweeps import Cell, write_run

from initlab.cli.report import print_run_table, run_report
from initlab.records import load, load_histograms, load_layers, load_metrics
from initlab.report.payload import collect_report_data
from initlab.system import safe_reading
from initlab.system.safe_reading import (
    Unreadable,
    load_bounded_json,
    load_bounded_yaml,
    read_bytes,
    read_json,
    read_yaml_file,
)

SOURCE = Path(__file__).parents[1] / "src" / "initlab"


@contextmanager
def at_most(seconds):
    """Interrupt what waits for ever (a pipe without a writer); far more than anything here takes."""

    def hang(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def laughs(levels=30):
    """A YAML bomb: 10 ** levels values by anchors."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines).encode()


def merges(levels=30):
    """The same by merge keys, which a loader expands while it loads."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}]}}" for k in range(1, levels)]
    return "\n".join(lines).encode()


DEEP = 100_000
BAD_YAML = {
    "flow": b"[" * DEEP,
    "block": b"- " * DEEP + b"x",
    "keys": b"? " * DEEP,
    "mapping": b"a: " + b"{a: " * DEEP + b"1" + b"}" * DEEP,
    "laughs": laughs(),
    "merges": merges(),
    "cycle": b"a: &a [*a]",
    "own cycle": b"&a {a: *a}",
    "digits": b"seed: " + b"9" * 4_000,
    "million digits": b"seed: " + b"9" * 1_000_000,
    "sexagesimal": b"seed: 1" + b":59" * 100_000,
    "hexadecimal": b"seed: 0x" + b"f" * 100_000,
    "values": b"[" + b"1," * 500_000 + b"]",
    "object": b"!!python/object/apply:os.system [exit 3]",
    "tag": b"a: !!bool x",
    "NUL": b"a: \0",
    "latin-1": b"a: \xe9",
    "two": b"a: 1\n---\nb: 2",
}
BAD_JSON = {
    "lists": b"[" * DEEP + b"]" * DEEP,
    "open": b"[" * DEEP,
    "objects": b'{"a":' * DEEP,
    "900 levels": b'{"a":' * 900 + b"1" + b"}" * 900,
    "digits": b'{"seed": ' + b"9" * 4_000 + b"}",
    "million digits": b'{"seed": ' + b"9" * 1_000_000 + b"}",
    "beyond int64": b'{"seed": 9223372036854775808}',
    "latin-1": b'{"a": "\xe9"}',
    "NUL": b'{"a": "\0"}',
    "list": b"[]",
    "empty": b"",
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_is_refused(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_bytes(BAD_YAML[name])
    with at_most(300), pytest.raises(ValueError, match=r"\S") as caught:
        read_yaml_file(path)
    assert len(safe_reading.error_reason(caught.value)) < 300
    assert "\n" not in safe_reading.error_reason(caught.value)


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_refused(tmp_path, name):
    path = tmp_path / "summary.json"
    path.write_bytes(BAD_JSON[name])
    with at_most(300), pytest.raises(ValueError, match=r"\S") as caught:
        read_json(path)
    assert len(safe_reading.error_reason(caught.value)) < 300


def test_what_is_written_is_read_to_the_bound():
    nested = 1
    for _ in range(safe_reading.MAX_DEPTH):
        nested = [nested]
    assert load_bounded_json(json.dumps(nested)) == nested
    assert load_bounded_yaml(json.dumps(nested)) == nested
    for read in (load_bounded_json, load_bounded_yaml):
        with pytest.raises(Unreadable, match="deeper than 32"):
            read(json.dumps([nested]))
    assert load_bounded_json(str(2**63 - 1)) == load_bounded_yaml(str(2**63 - 1)) == 2**63 - 1


def kinds(folder: Path) -> dict[str, Path]:
    """A file of every kind that is no regular one, and links to all sorts of things."""
    os.mkfifo(folder / "pipe")
    (folder / "directory").mkdir()
    (folder / "elsewhere").write_text("{}")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        listening.bind("socket")
        os.chdir(here)
    found = {name: folder / name for name in ("pipe", "directory", "socket")}
    targets = {"link": folder / "elsewhere", "zero": "/dev/zero", "loop": folder / "loop", "to pipe": folder / "pipe"}
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    return found | {name: folder / name for name in targets} | {"device": Path("/dev/zero")}


def test_only_regular_files_are_read(tmp_path):
    with at_most(300):
        for name, path in kinds(tmp_path).items():
            with pytest.raises(Unreadable, match="not a regular file"):
                pytest.fail(f"{name} was read: {read_bytes(path)[:9]!r}")
            with pytest.raises(Unreadable, match="not a regular file"):
                safe_reading.read_ends(path)


def test_a_size_is_a_bound(tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(5 * 2**40)  # sparse: terabytes that take no room
    with pytest.raises(Unreadable, match="it has 5,242,880 MiB"):
        read_bytes(large)
    with pytest.raises(Unreadable, match="more than the 0 MiB"):
        read_bytes("/dev/zero", 1000, given=True)  # the user named it: it is read, to the bound


# ---- a run among others


def unsealed(path: Path) -> dict:
    """A summary without its checksums, which somebody else can leave out or compute."""
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("format", "crc32", "files")}


def hostile_runs(root: Path) -> dict[str, Path]:
    """Runs that are bad in one file each."""
    found = {}

    def a_run(name: str) -> Path:
        found[name] = root / f"bad-{len(found):03d}"
        write_run(found[name], Cell("he_normal", "tanh", 2, 90 + len(found)), steps=20, records=2, status="completed")
        (found[name] / "summary.json").write_text(json.dumps(unsealed(found[name] / "summary.json")))
        return found[name]

    def summary(name: str, /, **fields) -> None:
        path = a_run(name) / "summary.json"
        path.write_text(json.dumps(unsealed(path) | fields))

    def config(name: str, /, **fields) -> None:
        path = a_run(name) / "summary.json"
        told = unsealed(path)
        path.write_text(json.dumps(told | {"config": told["config"] | fields}))

    for name, data in BAD_JSON.items():
        (a_run(f"json {name}") / "summary.json").write_bytes(data)
    for name, data in BAD_YAML.items():
        path = a_run(f"yaml {name}")
        (path / "summary.json").unlink()
        (path / "config.yaml").write_bytes(data)
    for number, value in enumerate((1e30, 1.5, -1, "many", [1], True, 1e400, 2**63 - 1, 2**53 + 1)):
        for key in ("steps", "first_bad_step"):
            summary(f"{key} {number}", **{key: value})
    for number, value in enumerate(("high", [1], {"a": 1}, True)):
        summary(f"loss {number}", loss=value)
    summary("trained", trained="perhaps")
    summary("hash", hash=["a"])
    summary("hash number", hash=3)
    summary("layer", first_bad_layer=3, status="diverged")
    summary("path", path="/etc")
    summary("problem", problem="all is well")
    summary("option", init="ones")
    summary("key", depth=99)
    summary("keys", **{f"key{k}": k for k in range(20_000)})
    summary("long key", **{"k" * 100_000: 1})
    for key, values in {
        "depth": ("deep", 1e30, 1.5, -3, [2], {"a": 1}, True, 2**62),
        "seed": ("s", 1e30, 0.5, -1, [1], None),
        "init": ({"name": ["a"]}, {"name": {"a": 1}}, {"name": 3}, "zeros", 7, None, []),
        "act": ({"name": None}, {"name": True}, 1.5),
        "optim": ({"name": "sgd", "lr": "fast"}, {"name": "sgd", "lr": [1]}, {"name": "sgd", "lr": -1}, "sgd",
                  {"name": "sgd", "lr": 1e308}, {"name": "sgd", "lr": 0}),
        "train": ({"steps": "x", "target_loss": {"a": 1}}, {"target_loss": 1e308}, [], "x"),
        "status": ("completed",), "path": ("/etc",), "problem": ("",), "name": ("x",), "race": ("final", 3),
        "width": ([[8], 9], {"a": {}}),
    }.items():  # fmt: skip
        for number, value in enumerate(values):
            config(f"config {key} {number}", **{key: value})
    config("config keys", **{f"key{k}": k for k in range(20_000)})
    for table in ("metrics.csv", "layers.csv", "histograms.csv"):
        lines = (a_run(f"{table} step") / table).read_text().splitlines()
        for number, step in enumerate(("9" * 30, "-1", "9223372036854775807", "1.5", "1e30", "nan", "")):
            path = a_run(f"{table} step {number}") / table
            path.write_text("\n".join([lines[0], step + lines[1][1:], *lines[2:]]) + "\n")
        for name, data in {
            "NUL": b"\0" * 100_000,
            "NUL tail": "\n".join(lines).encode() + b"\n" + b"\0" * 100_000 + b"\n",
            "utf-16": "\n".join(lines).encode("utf-16"),
            "columns": b",".join([b"step"] * 100_000) + b"\n",
            "wide line": (lines[0] + "\n" + "1," * 100_000 + "\n").encode(),
            "twice": (lines[0] + "," + lines[0] + "\n" + lines[1] + "," + lines[1] + "\n").encode(),
            "quote": ('"' + "\n".join(lines) + "\n").encode(),
            "binary": np.random.default_rng(0).bytes(100_000) + b"\n",
        }.items():
            (a_run(f"{table} {name}") / table).write_bytes(data)
    step = lines[0].split(",").index("counts")
    for number, counts in enumerate(("-5 " * 63 + "-5", "9" * 25 + " 1" * 63, f"{2**62} " * 63 + "1", "1.5 " * 64)):
        cells = lines[1].split(",")
        cells[step] = counts.strip()
        (a_run(f"counts {number}") / "histograms.csv").write_text(lines[0] + "\n" + ",".join(cells) + "\n")
    sparse = [f"{k},layer{k},{k},stat{k},1.0,measured" for k in range(20_000)]
    (a_run("sparse") / "layers.csv").write_text("step,layer,index,stat,value,source\n" + "\n".join(sparse) + "\n")
    return found


def special_runs(root: Path) -> dict[str, Path]:
    """Runs one of whose files is a pipe, a directory, a socket, or a link."""
    found = {}
    for name in ("summary.json", "config.yaml", "metrics.csv", "layers.csv", "histograms.csv"):
        for kind in ("pipe", "directory", "socket", "link", "zero", "loop", "to pipe"):
            run = found[f"{name} {kind}"] = root / f"special-{len(found):03d}"
            write_run(run, Cell("zeros", "tanh", 2, 50 + len(found)), steps=5, records=2)
            (run / "summary.json").write_text(json.dumps(unsealed(run / "summary.json")))
            if name == "config.yaml":
                (run / "summary.json").unlink()
            other = root.parent / f"kinds-{len(found)}"
            other.mkdir()
            (run / name).rename(other / "kept")
            made = kinds(other)[kind]
            (other / "elsewhere").unlink()
            (other / "kept").rename(other / "elsewhere")  # a link leads to a file that would be right
            made.rename(run / name)
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "sweep"
    root.mkdir()
    good = [root / f"good-{seed}" for seed in range(3)]
    for seed, path in enumerate(good):
        write_run(path, Cell("glorot_uniform", "tanh", 3, seed), steps=20, records=2, status="completed")
    return root, good, hostile_runs(root) | special_runs(root)


def test_every_bad_run_is_a_row_and_the_others_are_whole(hostile, tmp_path):
    root, good, bad = hostile
    alone = load(good)
    with at_most(600):
        runs = load(root)
        assert len(runs) == len(good) + len(bad)
        for read in (load_metrics, load_layers, load_histograms):
            found = read(runs)
            of_good = found[found["path"].isin(list(map(str, good)))].reset_index(drop=True)
            expected = read(alone)
            assert len(expected)
            assert of_good[["path", "step"]].equals(expected[["path", "step"]])
            assert found["step"].between(0, 2**32).all()
    whole = runs[runs["path"].isin(list(map(str, good)))].reset_index(drop=True)
    assert whole["problem"].tolist() == [""] * 3
    assert whole["test_accuracy"].tolist() == alone["test_accuracy"].tolist()
    by_path = runs.set_index("path")
    # Bad lines of tables are told by the report alone, which reads them; the others are unusual, and no more.
    silent = {name for name, path in bad.items() if not by_path.loc[str(path), "problem"]}
    assert silent == UNUSUAL | BAD_LINES


TABLES = ("metrics.csv", "layers.csv", "histograms.csv")
BAD_LINES = {f"{table} step {k}" for table in TABLES for k in range(7)} | {f"counts {k}" for k in range(4)} | {"sparse"}
BAD_LINES |= {f"{table} {name}" for table in TABLES for name in ("NUL tail", "wide line")}
UNUSUAL = {f"{table} step" for table in TABLES} | {f"config train {k}" for k in range(4)}
UNUSUAL |= {f"config {name}" for name in (
    "seed 5", "init 0", "init 1", "init 2", "act 1",
    "init 3", "init 5", "act 0", "depth 5", "optim 2", "optim 3", "optim 4", "optim 5", "race 0",
    "race 1", "width 0", "width 1", "name 0",
)}  # fmt: skip


def test_report_and_table_show_all_others(hostile, tmp_path, capsys):
    root, good, bad = hostile
    with at_most(900):
        run_report([str(root)], str(tmp_path))
        print_run_table([str(root)], [], [], None, "text", False, False)
        assert capsys.readouterr().out.count("glorot_uniform") >= 2
        found = collect_report_data([root])
    assert set(map(str, good)) <= set(found.study.runs["path"])
    # Tables of histograms are read in a choice: what lies outside of it is not looked at.
    told = {row["name"] for row in found.payload["unread"]}
    silent = {name for name, path in bad.items() if path.name not in told}
    assert {name for name in silent - UNUSUAL if not name.startswith("histograms.csv")} == set()
    assert not told & {path.name for path in good}


def test_a_summary_redirects_nothing(tmp_path):
    secret = tmp_path / "secret"
    write_run(secret, Cell("ones", "relu", 2, 0), steps=20, records=2, status="completed")
    run = tmp_path / "given" / "run"
    write_run(run, Cell("zeros", "tanh", 2, 0), steps=5, records=2)
    told = unsealed(run / "summary.json")
    (run / "summary.json").write_text(json.dumps(told | {"path": str(secret), "problem": "x"}))
    frame = load(tmp_path / "given")
    assert frame["path"].tolist() == [str(run)]
    assert "path" in frame["problem"].iloc[0]
    assert load_metrics(frame)["path"].unique().tolist() == [str(run)]


def test_links_inside_lead_nowhere_and_a_link_that_the_user_names_is_followed(tmp_path, capsys):
    write_run(tmp_path / "other" / "run", Cell("ones", "relu", 2, 0), steps=20, records=2, status="completed")
    write_run(tmp_path / "sweep" / "own", Cell("zeros", "tanh", 2, 0), steps=5, records=2)
    (tmp_path / "sweep" / "linked").symlink_to(tmp_path / "other" / "run")
    (tmp_path / "named").symlink_to(tmp_path / "sweep")
    assert [Path(path).name for path in load(tmp_path / "named")["path"]] == ["own"]
    run_report([str(tmp_path / "named")], str(tmp_path / "out.html"))
    assert "linked: no run: it is a symbolic link, which is not followed" in capsys.readouterr().out


# ---- every reader in the source


READERS = {
    "loads", "load", "safe_load", "full_load", "unsafe_load", "load_all", "safe_load_all", "read_csv", "read_table",
    "read_json", "read_excel", "read_parquet", "read_pickle", "read_text", "read_bytes", "fromfile", "genfromtxt",
    "loadtxt", "memmap", "load_file", "safe_open", "decompress", "unpack_archive", "parse", "reader", "DictReader",
    "from_file", "open", "fdopen", "fileinput", "load_path", "iterparse",
}  # fmt: skip
# file -> {call: reason}; every other call of a reader is refused.
EXCEPTIONS = {
    "system/safe_reading.py": {"*": "the guarded readers"},
    "records/columns.py": {"csv.reader": "one line that was read already", "read_bytes": "the guarded one"},
    "sweep/finished.py": {"read_bytes": "the guarded one"},
    "records/reader.py": {"read_bytes": "the guarded one"},
    "records/table_reader.py": {
        "read_bytes": "the guarded one",
        "pd.read_csv": "bytes that were read already, none of whose lines is long",
    },
    "records/writer.py": {"open": "metrics.csv that this run wrote", "csv.DictReader": "of it"},
    "system/files.py": {"open": "opens to write", "os.open": "for fsync"},
    "system/streams.py": {"os.open": "the null device, to write", "open": "the null device, to write"},
    "records/checksums.py": {"open": "a regular file, by its lstat; read chunk by chunk, to a known size"},
    "records/repair.py": {"read_bytes": "the guarded one"},
    "system/yaml_text.py": {"yaml.load": "texts that were read already: of the package, or of the user's command line"},
    "config/fast_compose.py": {"pickle.loads": "from this process's memory", "*.load_file": "Hydra's own reader"},
    "config/option_files.py": {"*.read_text": "our own package"},
    "sweep/executors/process.py": {"pickle.load": "from our own process"},
    "sweep/executors/process_worker.py": {
        "pickle.loads": "from our own process",
        "pickle.load": "from our own process",
        "os.fdopen": "a pipe of our own",
    },
    "system/resources.py": {"*.read_text": "/proc and /sys of this machine"},
    "ensemble/cpu/processor.py": {"*.read_text": "/proc of this machine"},
    "experiment/checkpoint.py": {"torch.load": "tensors only; checked there", "open": "opens to write", "load": "own"},
    "audit/weight_files.py": {"torch.load": "tensors only; checked there", "load_file": "checked there"},
    "system/parent_process.py": {
        "open": "/proc of our own process",
        "os.fdopen": "a pipe of our own",
        "pickle.load": "from our own process",
    },
    "records/commit.py": {"open": "git's own files, bounded there"},
    "sweep/worker_deaths.py": {"*.read_text": "/proc and /sys of this machine"},
    "audit/sources.py": {"torch.load": "tensors only; checked there", "load_file": "checked there"},
    "report/page.py": {"*.read_text": "our own package"},
    "report/phases.py": {"*.read_text": "our own package"},
    "reproduce/pages.py": {"*.read_text": "our own package", "read_bytes": "the guarded one", "read_json": "guarded"},
    "reproduce/specification.py": {"*.read_text": "our own package", "yaml.safe_load": "our own package"},
    "cli/reproduce.py": {"read_json": "guarded"},
    "data/text.py": {"*.read_text": "our own package"},
    "data/idx.py": {"read_bytes": "the guarded one", "decompress": "the guarded one"},
    "cli/audit.py": {"yaml.safe_load": "a word of the user's own command line"},
    "cli/diagnose.py": {"yaml.safe_load": "a word of the user's own command line"},
    "sweep/plan_file.py": {"read_bytes": "the guarded one"},
    "sweep/worker.py": {"read_json": "guarded"},
    "sweep/locks.py": {"read_json": "guarded"},
}


def reads(source: str) -> list[str]:
    """Every call of a reader in a file, as `pd.read_csv`; * stands for an object that is no module."""
    modules = {"json", "yaml", "pd", "pickle", "torch", "np", "csv", "os", "gzip", "zlib", "shutil", "safetensors"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in READERS:
                owner = called.value if isinstance(called, ast.Attribute) else None
                known = isinstance(owner, ast.Name) and owner.id in modules
                found.append(f"{owner.id}.{name}" if known else f"*.{name}" if owner is not None else name)
    return found


def strangers(path: str, source: str) -> list[str]:
    """Readers in a file that neither go through the guarded ones nor have a reason."""
    reasons = EXCEPTIONS.get(path, {})
    return [] if "*" in reasons else sorted(set(reads(source)) - set(reasons) - HARMLESS)


# Same names, other things: a frame of runs, a data set by name, an abstract of a template.
HARMLESS = {"load", "*.load", "*.parse", "*.open"}


@pytest.mark.parametrize("path", sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")))
def test_every_reader_is_guarded_or_has_a_reason(path):
    assert strangers(path, (SOURCE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    ["json.loads(x)", "json.load(f)", "yaml.safe_load(x)", "yaml.load(x, L)", "pd.read_csv(p)", "open(p)",
     "path.read_text()", "path.read_bytes()", "np.load(p)", "torch.load(p)", "pickle.loads(x)", "gzip.open(p)",
     "gzip.decompress(x)", "safe_open(p)", "np.fromfile(p)"],
)  # fmt: skip
def test_the_search_sees_a_reader(line):
    assert strangers("report/new.py", line) != []
