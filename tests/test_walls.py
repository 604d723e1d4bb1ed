"""Who may import whom, what is imported when, and what a file may be called: walls that can fail."""

import ast
import json
import subprocess
import sys
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


def imported(path: Path, source: Path) -> list[str]:
    """Dotted names that a file imports from the package, wherever in the file it does."""
    package = source.name
    own = [package, *path.relative_to(source).with_suffix("").parts]
    here = own if path.name == "__init__.py" else own[:-1]
    here = here[:-1] if path.name == "__init__.py" else here
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names] if module == package else [module]
    return [name for name in found if name.startswith(f"{package}.") and "__" not in name]


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
        for name in imported(path, source):
            other = name.split(".")[1]
            if other != room and numbers.get(other, 99) >= numbers[room]:
                found.append(f"{path.relative_to(source)} imports {name}")
    return found


def test_rooms_import_from_lower_numbers():
    assert breaches(SOURCE, NUMBERS) == []


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("from initlab.training import x", True),
        ("from initlab import training", True),
        ("import initlab.training.loop", True),
        ("from ..training import loop", True),
        ("from .. import training", True),
        ("def f():\n    from initlab.training import x", True),
        ("from initlab.errors import UserError", False),
        ("from ..errors import UserError", False),
        ("from .plain import x", False),
        ("from . import plain", False),
        ("import torch", False),
    ],
)
def test_the_wall_sees_a_breach(tmp_path, line, seen):
    room = tmp_path / "initlab" / "schemes"
    room.mkdir(parents=True)
    (room / "new.py").write_text(line, encoding="utf-8")
    assert bool(breaches(tmp_path / "initlab", NUMBERS)) == seen
    (room / "new.py").rename(room / "__init__.py")
    if "from . " not in line and "from .plain" not in line and "from .." not in line:
        assert bool(breaches(tmp_path / "initlab", NUMBERS)) == seen


def test_the_wall_sees_a_room_without_a_number(tmp_path):
    (tmp_path / "initlab").mkdir()
    (tmp_path / "initlab" / "attic.py").write_text("", encoding="utf-8")
    assert breaches(tmp_path / "initlab", NUMBERS) == ["attic has no number"]


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
        ("src/initlab/display.py", "import plotly.graph_objects", True),
        ("src/initlab/report.py", "import plotly.graph_objects", False),
        ("src/initlab/config/compose.py", "import hydra", False),
        ("src/initlab/door.py", "import hydra", False),
        ("src/initlab/launcher/new.py", "import hydra", False),
        ("src/hydra_plugins/initlab_launcher/ensemble.py", "import hydra", False),
    ],
)
def test_ruff_bans_libraries_outside_their_rooms(name, line, refused):
    assert ("TID251" in ruff(name, line)) == refused


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


CLI = "from initlab.cli import main\nmain()"
DOOR = "from initlab.cli.train import main\nraise SystemExit(main())"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import initlab\ndir(initlab)", []),
        (CLI, ["--help"]),
        (CLI, ["schemes", "--help"]),
        (CLI, ["activations", "--help"]),
        ("import initlab.cli, initlab.config.schema, initlab.config.checks, initlab.config.help", []),
    ],
)
def test_nothing_heavy_for_imports_and_help(code, arguments):
    assert loaded_after(code, *arguments) == []


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (DOOR, ["--help"]),
        (DOOR, ["--hydra-help"]),
        (DOOR, ["--cfg", "job"]),
        (DOOR, ["--info", "defaults"]),
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
