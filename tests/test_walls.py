"""Who may import whom, what is imported when, and what a file may be called: walls that can fail."""

import ast
import json
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import initlab

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "initlab"

# A room imports only from rooms with lower numbers. `scripts/draw_house.py` draws docs/architecture.md from this table.
NUMBERS = {
    "errors": 0,
    "statistics": 0,
    "system": 1,
    "config": 2,
    "activations": 3,
    "data": 3,
    "inspection": 3,
    "records": 3,
    "models": 4,
    "report": 4,
    "schemes": 4,
    "ensemble": 5,
    "theory": 5,
    "diagnostics": 6,
    "initialize": 7,
    "audit": 8,
    "prediction": 8,
    "testing": 9,
    "training": 9,
    "experiment": 10,
    "sweep": 11,
    "reproduce": 12,
    "cli": 13,
}
DRAWERS = {"utils", "util", "helpers", "common", "core", "base", "misc", "tools"}
# Files beyond 300 lines, each with the reason why it is one thing.
LONG: dict[str, str] = {}
HEAVY = ("torch", "torchvision", "pandas", "scipy", "tensorboard", "matplotlib", "plotly", "safetensors")


STRING = re.compile(r"initlab(?:\.[a-z_]+)+:[a-z_]+|(?:from|import) (initlab(?:\.[a-z_]+)+)")
# library or call -> the files and rooms that may use it
LIBRARIES = {
    "hydra": ("config/", "cli/train.py", "cli/hydra/"),
    "omegaconf": ("config/", "cli/train.py", "cli/hydra/"),
    "tensorboard": ("records/event_file.py",),
    "plotly": ("report/",),
    "matplotlib": ("report/",),
    "jinja2": ("report/",),
    "typer": ("cli/",),
    "click": ("cli/",),
    "rich": ("system/terminal.py", "cli/", "sweep/screen.py", "sweep/dry_run.py", "sweep/progress.py"),
    "ctypes": ("ensemble/cpu/",),
    "os.fork": (),
    "gc.freeze": ("system/",),
    "print": ("cli/", "sweep/screen.py", "sweep/dry_run.py", "system/"),
}


def module_of(path: Path, source: Path) -> str:
    """Return the dotted name of a file of the package."""
    return ".".join([source.name, *path.relative_to(source).with_suffix("").parts]).removesuffix(".__init__")


def imports(path: Path, source: Path) -> list[str]:
    """Return the dotted names that a file imports from the package, by statement or by string, wherever it does."""
    own = module_of(path, source).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found += [match[1] or match[0].partition(":")[0] for match in STRING.finditer(node.value)]
    return [name for name in found if name.startswith(f"{source.name}.") and "__" not in name]


def breaches(source: Path, numbers: dict[str, int]) -> list[str]:
    """Sentences about imports that do not go down, and about rooms without a number."""
    found = []
    for path in sorted(source.rglob("*.py")):
        room = path.relative_to(source).with_suffix("").parts[0]
        if room == "__init__":
            continue
        if room not in numbers:
            found.append(f"{room} has no number")
            continue
        for name in imports(path, source):
            other = name.split(".")[1]
            if other != room and numbers.get(other, 99) >= numbers[room]:
                found.append(f"{path.relative_to(source)} imports {name}")
    return found


def circle(source: Path) -> list[str]:
    """Return files that import each other in a circle, wherever in a file the imports stand; [] if there is none."""
    files = {module_of(path, source): path for path in source.rglob("*.py")}
    graph = {}
    for module, path in files.items():
        named = {name if name in files else name.rpartition(".")[0] for name in imports(path, source)}
        graph[module] = named & set(files) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def uses(path: Path) -> set[str]:
    """Return the libraries that a file imports, and which of os.fork, gc.freeze and print it calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(node.module or "").partition(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
    return found


def strangers(source: Path) -> list[str]:
    """Sentences about files that use a library outside its rooms."""
    found = []
    for path in sorted(source.rglob("*.py")):
        place = str(path.relative_to(source))
        used = uses(path)
        found += [
            f"{place} uses {one}" for one, rooms in LIBRARIES.items() if one in used and not place.startswith(rooms)
        ]
    return found


def owners(source: Path) -> dict[str, list[str]]:
    """Return the classes and public functions that are defined in several files: name -> files."""
    found: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(source)))
    return {name: files for name, files in found.items() if len(files) > 1}


def test_rooms_import_from_lower_numbers():
    assert breaches(SOURCE, NUMBERS) == []


def test_no_circle_of_files():
    assert circle(SOURCE) == []


def test_libraries_stay_in_their_rooms():
    assert strangers(SOURCE) == []


def test_every_name_is_defined_once():
    assert owners(SOURCE) == {}


def test_at_most_23_names_stand_at_the_top():
    names = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__"} == set(NUMBERS)
    assert len(NUMBERS) <= 23


def package_with(folder: Path, files: dict[str, str]) -> Path:
    """Write a package of these files, and return where it is."""
    for name, text in files.items():
        path = folder / "initlab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "initlab"


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("from initlab.training import x", True),
        ("from initlab import training", True),
        ("import initlab.training.loop", True),
        ("from ..training import loop", True),
        ("from .. import training", True),
        ("def f():\n    from initlab.training import x", True),
        ("WORKER = 'initlab.training.loop:train'", True),
        ("PROGRAM = 'import sys; from initlab.training.loop import train; train()'", True),
        ("def f():\n    'Like `initlab.training.loop:train`.'", False),
        ("LOWER = 'initlab.errors:nearest'", False),
        ("from initlab.errors import UserError", False),
        ("from ..errors import UserError", False),
        ("from .plain import x", False),
        ("from . import plain", False),
        ("import torch", False),
    ],
)
def test_an_upward_import_is_seen(tmp_path, line, seen):
    source = package_with(tmp_path, {"schemes/new.py": line})
    assert bool(breaches(source, NUMBERS)) == seen


def test_a_room_without_a_number_is_seen(tmp_path):
    assert breaches(package_with(tmp_path, {"attic.py": ""}), NUMBERS) == ["attic has no number"]


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ({"a.py": "from initlab.b import x", "b.py": "import initlab.a"}, True),
        ({"a.py": "from initlab import b", "b.py": "def f():\n    from initlab.a import x"}, True),
        ({"r/__init__.py": "from initlab.r.a import x", "r/a.py": "from initlab.r import y"}, True),
        ({"r/__init__.py": "from initlab.r.a import x", "r/a.py": "from initlab.r.b import y", "r/b.py": ""}, False),
        ({"a.py": "START = 'initlab.b:f'", "b.py": "from initlab.a import x"}, True),
    ],
)
def test_a_circle_is_seen(tmp_path, files, seen):
    assert bool(circle(package_with(tmp_path, files))) == seen


@pytest.mark.parametrize(
    ("place", "line", "seen"),
    [
        ("schemes/new.py", "import hydra", True),
        ("sweep/new.py", "from omegaconf import DictConfig", True),
        ("config/new.py", "import hydra", False),
        ("training/new.py", "def f():\n    from tensorboard.compat.proto import event_pb2", True),
        ("report/new.py", "import rich.table", True),
        ("cli/new.py", "import rich.table", False),
        ("sweep/new.py", "import ctypes", True),
        ("sweep/new.py", "import os\nos.fork()", True),
        ("sweep/new.py", "from os import fork", True),
        ("sweep/new.py", "print(1)", True),
        ("ensemble/cpu/new.py", "import ctypes", False),
    ],
)
def test_a_library_outside_its_rooms_is_seen(tmp_path, place, line, seen):
    assert bool(strangers(package_with(tmp_path, {place: line}))) == seen


@pytest.mark.parametrize(
    ("first", "second", "seen"),
    [
        ("def load(): ...", "def load(): ...", True),
        ("class Plan: ...", "class Plan: ...", True),
        ("def _load(): ...", "def _load(): ...", False),
        ("class A:\n    def load(self): ...", "class B:\n    def load(self): ...", False),
    ],
)
def test_a_name_that_is_defined_twice_is_seen(tmp_path, first, second, seen):
    assert bool(owners(package_with(tmp_path, {"a.py": first, "b.py": second}))) == seen


def ruff(name: str, line: str) -> str:
    """What ruff says of a line in a file of this name, by the rules of pyproject.toml."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "concise"]
    done = subprocess.run(
        [*command, "--stdin-filename", name, "-"], input=f"{line}\n", capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout


@pytest.mark.parametrize(
    ("name", "line", "refused"),
    [
        ("src/initlab/schemes/new.py", "import hydra", True),
        ("src/initlab/experiment/new.py", "from hydra.utils import instantiate", True),
        ("src/initlab/sweep/new.py", "from omegaconf import DictConfig", True),
        ("src/initlab/training/new.py", "from tensorboard.compat.proto import event_pb2", True),
        ("src/initlab/records/new.py", "from tensorboard.compat.proto import event_pb2", False),
        ("src/initlab/system/terminal.py", "import plotly.graph_objects", True),
        ("src/initlab/report/svg.py", "import plotly.graph_objects", False),
        ("src/initlab/config/compose.py", "import hydra", False),
        ("src/initlab/cli/train.py", "import hydra", False),
        ("src/initlab/cli/hydra/new.py", "import hydra", False),
        ("src/hydra_plugins/initlab_launcher/ensemble.py", "import hydra", False),
    ],
)
def test_ruff_bans_libraries_outside_their_rooms(name, line, refused):
    assert ("banned" in ruff(name, line)) == refused


def test_no_drawers():
    names = {path.stem.strip("_") for path in SOURCE.rglob("*") if path.suffix == ".py" or path.is_dir()}
    assert names & DRAWERS == set()


def test_files_are_short():
    sizes = {str(p.relative_to(SOURCE)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    assert {name: lines for name, lines in sizes.items() if lines > 300 and name not in LONG} == {}
    assert len((SOURCE / "__init__.py").read_text(encoding="utf-8").splitlines()) <= 40
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 20


# ---- what is imported when


def loaded_after(code: str, *arguments: str) -> list[str]:
    """Which heavy modules a fresh interpreter has loaded after running this code."""
    program = f"""
import json, sys
sys.argv = ["initlab", *{list(arguments)!r}]
try:
{chr(10).join("    " + line for line in code.splitlines())}
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("\\n" + json.dumps([name for name in {(*HEAVY, "hydra")!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CLI = "from initlab.cli.main import main\nmain()"
TRAIN = "from initlab.cli.train import run_train\nraise SystemExit(run_train())"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import initlab\ndir(initlab)", []),
        (CLI, ["--help"]),
        (CLI, ["schemes", "--help"]),
        (CLI, ["activations", "--help"]),
        ("import initlab.cli.main, initlab.config.schema, initlab.config.checks, initlab.config.help", []),
    ],
)
def test_nothing_heavy_for_imports_and_help(code, arguments):
    assert loaded_after(code, *arguments) == []


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (TRAIN, ["--help"]),
        (TRAIN, ["--hydra-help"]),
        (TRAIN, ["--cfg", "job"]),
        (TRAIN, ["--info", "defaults"]),
        (CLI, ["train", "--help"]),
        ("import initlab.cli.hydra, hydra_plugins.initlab_launcher.ensemble", []),
        ("from initlab.config.compose import compose_config\ncompose_config(['init=he_normal'])", []),
    ],
)
def test_only_hydra_for_the_help_of_the_door(code, arguments):
    assert loaded_after(code, *arguments) == ["hydra"]


def test_what_is_loaded_is_seen():
    assert "pandas" in loaded_after("import pandas")
    assert {"torch", "pandas"} <= set(loaded_after("import initlab\ninitlab.initialize_"))


# ---- the public surface: DESIGN.md, section 7


@pytest.mark.parametrize("name", initlab.__all__)
def test_public_name_resolves(name):
    assert getattr(initlab, name) is not None
    assert name in dir(initlab)


SURFACE = {
    "schemes": ["SCHEMES"],
    "activations": ["ACTIVATIONS"],
    "initialize": ["initialize_", "fingerprint"],
    "models": ["models.build"],
    "theory": ["theory.gains", "theory.fixed_point", "theory.critical"],
    "records": ["load", "load_layers"],
}


@pytest.mark.parametrize(("room", "name"), [(room, name) for room, names in SURFACE.items() for name in names])
def test_surface_of_the_design(room, name):
    found = initlab
    for part in name.split("."):
        found = getattr(found, part)
    assert found is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = initlab.nothing
