"""Whatever becomes of standard output and error: every verb ends as it should, and no run is lost for a print."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import initlab
from initlab.cli.main import main
from initlab.records import load
from initlab.records.serialization import from_json
from initlab.records.writer import RunWriter
from initlab.system.streams import SafeStream, print_stderr, use_safe_streams

TINY = ("depth=1", "width=4", "train.steps=2", "data=gaussian", "data.train_size=300", "data.test_size=50")
CALL = (sys.executable, "-c", "from initlab.cli.main import main; main()")
VERBS = {
    "train": ("train", *TINY),
    "sweep": ("train", "-m", *TINY, "seed=0,1"),
    "table": ("table", "made"),
    "report": ("report", "made"),
    "predict": ("predict", "act=relu", "init=he_normal", "depth=2"),
    "rank": ("predict", "act=relu,tanh", "depth=2"),
    "schemes": ("schemes",),
    "activations": ("activations",),
    "diagnose": ("diagnose", "net_h:net", "--input", "8,4"),
    "audit": ("audit", "net_h:net", "--init", "torch_default"),
    "coordinates": ("coordinates", "--widths", "8,16", "--steps", "1"),
    "reproduce": ("reproduce",),
    "help": ("--help",),
    "keys": ("train", "--help"),
}
CODES = {"audit": (0, 1), "coordinates": (0, 1)}  # 1 where a promise is broken


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a small sweep and a module of the user's own."""
    found = tmp_path_factory.mktemp("outputs")
    (found / "net_h.py").write_text("import torch\ndef net(): return torch.nn.Linear(4, 4)\n", encoding="utf-8")
    given = dict(text.split("=") for text in TINY)
    initlab.sweep(given, seed=[0, 1], sweep__root=str(found), sweep__name="made", quiet=True)
    return found


@pytest.fixture
def says(place, monkeypatch):
    """Call a verb in this process with streams of one's own; return its exit code."""

    def call(verb: str, out: object, err: object) -> int:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["initlab", *VERBS[verb]])
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as left:
                main()
        return int(left.value.code or 0)

    return call


def narrow(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


class Failing(io.StringIO):
    """A stream whose every write fails, as that of a pipe without a reader or of a full disk does."""

    encoding = "utf-8"

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        raise io.UnsupportedOperation("no file")


def newest(place: Path, verb: str) -> list[str]:
    """How the runs of a verb ended: those of the newest directory."""
    roots = {"train": place / "outputs" / "runs", "sweep": place / "outputs" / "sweeps"}
    last = max(roots[verb].iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return load(last)["status"].tolist()


@pytest.mark.parametrize(
    ("verb", "encoding"),
    [*((verb, "ascii") for verb in VERBS), *((verb, "cp1252") for verb in ("sweep", "schemes", "rank"))],
)
def test_letters_that_cannot_be_shown_are_replaced(says, place, verb, encoding):
    out, err = narrow(encoding), narrow(encoding)
    assert says(verb, out, err) in CODES.get(verb, (0,)), err.buffer.getvalue()
    shown = out.buffer.getvalue().decode(encoding)
    assert shown.strip()
    if verb in ("train", "sweep"):
        assert set(newest(place, verb)) == {"completed"}


FEW = ("train", "sweep", "table", "schemes", "reproduce")


@pytest.mark.parametrize(
    ("verb", "kind"),
    [*((verb, "no reader") for verb in VERBS), *((verb, kind) for verb in FEW for kind in ("full", "none"))],
)
def test_an_output_that_is_lost(says, place, verb, kind):
    """A reader that left, and an output that was closed, are no error; a full disk is, where the output is the work."""
    out = {"no reader": Failing(errno.EPIPE), "full": Failing(errno.ENOSPC), "none": None}[kind]
    err = io.StringIO()
    code = says(verb, out, err)
    bad = kind == "full" and VERBS[verb][0] != "train"
    assert code == 1 if bad else code in CODES.get(verb, (0,)), err.getvalue()
    assert "Traceback" not in err.getvalue()
    if kind == "full":
        assert "standard output cannot be written ([Errno 28] No space left on device)" in err.getvalue()
    if verb in ("train", "sweep"):
        assert set(newest(place, verb)) == {"completed"}


@pytest.mark.parametrize("verb", ["train", "sweep", "table", "diagnose"])
@pytest.mark.parametrize("stream", [None, Failing(errno.EPIPE), Failing(errno.EBADF)])
def test_nothing_hears_what_is_said_on_standard_error(says, place, verb, stream):
    out = io.StringIO()
    assert says(verb, out, stream) == 0
    assert out.getvalue().strip()


def test_python_loses_no_sweep_for_a_print(place, monkeypatch, tmp_path):
    for number, out in enumerate((narrow("ascii"), Failing(errno.EPIPE), None)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", narrow("ascii"))
            given = dict(text.split("=") for text in TINY)
            frame = initlab.sweep(given, seed=[0, 1], sweep__root=str(tmp_path / f"é{number}"), sweep__name="s")
            assert sys.stdout is out
        assert frame["status"].tolist() == ["completed"] * 2


def test_streams_come_back_and_a_second_wrapper_is_the_first():
    before = sys.stdout, sys.stderr
    with use_safe_streams():
        first = sys.stdout
        with use_safe_streams():
            assert sys.stdout is first
        assert isinstance(first, SafeStream)
    assert (sys.stdout, sys.stderr) == before


def test_a_closed_stream_is_lost_and_no_error():
    closed = io.StringIO()
    closed.close()
    stream = SafeStream(closed)
    assert (stream.write("a"), stream.isatty()) == (1, False)
    stream.flush()
    assert stream.error is not None


def test_tell_never_raises(monkeypatch):
    for stream in (None, Failing(errno.EPIPE), Failing(errno.EIO), narrow("ascii")):
        monkeypatch.setattr(sys, "stderr", stream)
        print_stderr("é – ± \udcff")


SHELL = ['"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&-', '"$@" <&- >&- 2>&-', '"$@" | head -c 1 >&2', '"$@" >/dev/full']


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("line", SHELL)
def test_descriptors_of_the_process(place, line):
    """The first file that is opened takes the place of a closed one: nothing printed may end in it."""
    root = place / f"shell{SHELL.index(line)}"
    words = [*CALL, "train", *TINY, f"hydra.run.dir={root}"]
    shell = ["bash", "-c", f"set -o pipefail; {line}", "bash", *words]
    done = subprocess.run(shell, cwd=place, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert load(root)["status"].tolist() == ["completed"]
    for path in root.iterdir():
        if path.suffix in (".csv", ".json", ".yaml", ".log"):
            assert "tensorboard --logdir" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "POSIX", "PYTHONUTF8": "0"},
    ],
)
def test_records_are_utf_8_whatever_the_locale(place, tmp_path, settings):
    (tmp_path / "names_h.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, n, m):\n        super().__init__()\n"
        "        self.add_module('größe', torch.nn.Linear(n, m))\n"
        "    def forward(self, x): return self.get_submodule('größe')(x)\n"
        "def net(input_shape, classes): return Net(input_shape[0], classes)\n",
        encoding="utf-8",
    )
    words = ["train", "-m", *TINY, "model=names_h:net", "seed=0,1", "sweep.name=zoë", f"sweep.root={tmp_path}"]
    environment = {**os.environ, **settings}
    done = subprocess.run([*CALL, *words], cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (root,) = [path for path in tmp_path.iterdir() if path.name.startswith("zo")]
    frame = load(root)
    assert frame["status"].tolist() == ["completed"] * 2
    for path in root.rglob("*"):
        if path.suffix in (".csv", ".json", ".yaml", ".log"):
            path.read_bytes().decode("utf-8")
    assert "größe.weight" in (Path(frame["path"][0]) / "parameters.csv").read_text(encoding="utf-8")


def test_half_a_letter_in_a_name_costs_no_record(tmp_path):
    run = RunWriter(tmp_path / "run", {"init": {"name": "zeros"}, "data": {"root": "/a\udcff"}, "depth": 3})
    run.log("a path \udcff")
    run.finish("completed", loss=1.0, reason="\udcff é")
    summary = from_json((tmp_path / "run" / "summary.json").read_bytes())
    assert summary["config"]["data"]["root"] == "/a\\udcff"
    assert "é" in summary["reason"]
    json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))


# --- a current directory that is gone

GONE = "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d); "


@pytest.mark.parametrize("verb", ["schemes", "predict", "train", "sweep", "reproduce", "audit", "diagnose"])
def test_without_a_current_directory_one_sentence(verb):
    program = GONE + "from initlab.cli.main import main; main()"
    call = [sys.executable, "-c", program, *VERBS[verb]]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "initlab: The current directory has been removed: change to one that exists (cd) and start again.\n"
    )


@pytest.mark.parametrize("verb", ["table", "report"])
def test_what_needs_no_current_directory_does_its_work(place, verb):
    program = GONE + "from initlab.cli.main import main; main()"
    call = [sys.executable, "-c", program, verb, str(place / "made")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "glorot_uniform" in done.stdout


OWN = """
import os
from pathlib import Path
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        here = Path(os.environ["GONE"])
        if here.exists() and len(list(Path(os.environ["KEPT"]).rglob("config.yaml"))) > 0:
            here.rmdir()
        return super().forward(x)
def net(input_shape, classes):
    return Net(input_shape[0], classes)
"""


@pytest.mark.parametrize("several", [(), ("-m", "seed=0,1")])
def test_a_directory_that_goes_during_a_run_costs_nothing(tmp_path, several):
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    gone.mkdir()
    (tmp_path / "goes_h.py").write_text(OWN, encoding="utf-8")
    where = [f"sweep.root={kept}", "sweep.name=s"] if several else [f"hydra.run.dir={kept}"]
    words = [*CALL, "train", *several, *TINY, "model=goes_h:net", *where]
    environment = {**os.environ, "GONE": str(gone), "KEPT": str(kept), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=gone, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert not gone.exists()
    assert done.returncode == 0, done.stderr
    assert set(load(kept)["status"]) == {"completed"}
