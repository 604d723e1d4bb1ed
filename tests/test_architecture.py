"""docs/architecture.md and its drawing agree with the imports and with the tables of tests/test_walls.py."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE, DRAWING = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("draw_house", ROOT / "scripts" / "draw_house.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(script):
    return script.generate()


@pytest.mark.parametrize("path", [PAGE, DRAWING], ids=lambda path: path.name)
def test_page_and_drawing_are_current(path, generated):
    stale = "run python scripts/draw_house.py: the rooms or their imports have changed"
    assert generated[path] == path.read_text(encoding="utf-8"), stale


def test_every_room_is_in_the_drawing_and_in_the_table(script):
    rooms = {path.stem for path in (ROOT / "src" / "initlab").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__", "__pycache__"}
    drawn = set(re.findall(r'class="name"[^>]*>(\w+)<', DRAWING.read_text(encoding="utf-8")))
    listed = set(re.findall(r"^\| \d+ \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert rooms == drawn == listed == set(script.read_table("NUMBERS"))


def test_every_room_has_a_purpose(script):
    assert [room for room in script.read_table("NUMBERS") if not script.purpose(room)] == []


def test_arrows_point_down_and_lead_to_every_import(script):
    numbers = script.read_table("NUMBERS")
    imports = {room: script.imported_rooms(room) for room in numbers}
    arrows = script.direct_arrows(imports)
    assert all(numbers[start] > numbers[end] for start, end in arrows)
    reached = {room: {end for start, end in arrows if start == room} for room in numbers}
    for room in sorted(numbers, key=numbers.get):
        reached[room] = reached[room].union(*(reached[other] for other in reached[room]))
    assert [room for room in numbers if not imports[room] <= reached[room]] == []


def test_the_drawing_adapts_to_dark_mode():
    assert "@media (prefers-color-scheme: dark)" in DRAWING.read_text(encoding="utf-8")


def test_files_that_the_page_names_exist():
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {name for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.\w+)?)`", text) if "<" not in name}
    places = (ROOT, ROOT / "src" / "initlab")
    assert [name for name in names if not any((place / name).exists() for place in places)] == []
    assert len(text.splitlines()) <= 200
