"""Draw the rooms of initlab: write docs/architecture.svg and the generated tables of docs/architecture.md.

Rooms, numbers and libraries come from tests/test_walls.py, arrows from the imports under src/initlab. With `--check`
nothing is written, and the exit code is 1 where a file is stale.
"""

import ast
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "initlab"
PAGE, DRAWING = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"
WIDTH, BOX, HEIGHT, ROW = 1000, 114, 34, 72  # px: of the drawing, of a box (2), from one row to the next
COLUMNS = [122 + 136 * k for k in range(7)]  # px: centers that a box can have
Arrow = tuple[str, str]
STYLE = """
  .page { fill: #ffffff } .row { stroke: #d8dee4; stroke-dasharray: 2 4 } .number { fill: #656d76 }
  .box { fill: #eef4fb; stroke: #4f7cac } .name { fill: #102a43; font-weight: 600 }
  .arrow { stroke: #5b6b7b; stroke-width: 1.3; fill: none } .head { fill: #5b6b7b }
  text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .row { stroke: #30363d } .number { fill: #8b949e }
    .box { fill: #16263a; stroke: #6ea8e0 } .name { fill: #e6edf3 } .arrow { stroke: #9aa7b4 } .head { fill: #9aa7b4 }
  }
"""


def read_table(name: str) -> dict[str, Any]:
    """Return a literal dictionary of tests/test_walls.py, such as NUMBERS."""
    tree = ast.parse((ROOT / "tests" / "test_walls.py").read_text(encoding="utf-8"))
    value = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name)
    return dict(ast.literal_eval(value))


def room_files(room: str) -> list[Path]:
    """Return the files of a room, which is a folder or one file; its docstring is in the first."""
    folder = SOURCE / room
    return [folder / "__init__.py", *sorted(folder.rglob("*.py"))] if folder.is_dir() else [SOURCE / f"{room}.py"]


def imported_rooms(room: str) -> set[str]:
    """Return the rooms that the files of a room import, by statement."""
    names: set[str] = set()
    for path in room_files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "initlab":
                names |= {f"initlab.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    rooms = {name.split(".")[1] for name in names if name.startswith("initlab.")} - {room}
    return {name for name in rooms if not name.startswith("_")}


def purpose(room: str) -> str:
    """Return the first line of a room's docstring."""
    return (ast.get_docstring(ast.parse(room_files(room)[0].read_text(encoding="utf-8"))) or "").partition("\n")[0]


def direct_arrows(imports: dict[str, set[str]]) -> list[Arrow]:
    """Return the imports that no path over another imported room implies: the transitive reduction."""

    @cache
    def reachable(room: str) -> frozenset[str]:
        return frozenset(imports[room]).union(*map(reachable, imports[room]))

    implied = {room: set().union(*map(reachable, others)) for room, others in imports.items()}
    return [(room, other) for room, others in imports.items() for other in sorted(others - implied[room])]


def points(controls: list[complex]) -> list[complex]:
    """Return points along a cubic Bézier curve."""
    factors = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in (k / 24 for k in range(25))]
    return [sum((f * c for f, c in zip(row, controls, strict=True)), 0j) for row in factors]


def routes(places: dict[str, complex], arrows: list[Arrow]) -> dict[Arrow, list[complex]]:
    """Return each arrow's control points; ends at one box are spread over its width, in the order of their rooms."""

    def port(room: str, others: list[str], other: str) -> complex:
        order = sorted(others, key=lambda name: (places[name].real, places[name].imag))
        return places[room] + BOX * 0.8 * ((order.index(other) + 1) / (len(order) + 1) - 0.5)

    leaving = {room: [b for a, b in arrows if a == room] for room in places}
    entering = {room: [a for a, b in arrows if b == room] for room in places}
    controls = {}
    for a, b in arrows:
        start, end = port(a, leaving[a], b) + 0.5j * HEIGHT, port(b, entering[b], a) - 0.5j * HEIGHT - 7j
        bend = (end.imag - start.imag) * 0.45j
        controls[a, b] = [start, start + bend, end - bend, end]
    return controls


def disorder(places: dict[str, complex], arrows: list[Arrow]) -> float:
    """Return the cost of a layout: arrows behind boxes count most, then crossings, then lengths."""
    lines = {arrow: points(controls) for arrow, controls in routes(places, arrows).items()}
    hidden = crossings = 0
    for arrow, line in lines.items():
        for room, center in places.items():
            gaps = [p - center for p in line] if room not in arrow else []
            hidden += any(abs(gap.real) < BOX / 2 + 6 and abs(gap.imag) < HEIGHT / 2 + 4 for gap in gaps)
    for one, two in combinations(lines.values(), 2):
        top, bottom = max(one[0].imag, two[0].imag), min(one[-1].imag, two[-1].imag)
        if top < bottom:
            a, b, c, d = (min(line, key=lambda p: abs(p.imag - y)).real for y in (top, bottom) for line in (one, two))
            crossings += (a - b) * (c - d) < 0
    return 200 * hidden + 20 * crossings + sum(abs(line[0].real - line[-1].real) for line in lines.values()) / 30


def layout(numbers: dict[str, int], arrows: list[Arrow]) -> dict[str, complex]:
    """Place rooms in rows, the highest number on top; move them along their rows as long as that lowers `disorder`."""
    places: dict[str, complex] = {}
    for position, number in enumerate(sorted(set(numbers.values()), reverse=True)):
        own = sorted(room for room in numbers if numbers[room] == number)
        for k, room in enumerate(own):
            places[room] = complex(COLUMNS[(len(COLUMNS) - len(own)) // 2 + k], 40 + position * ROW)
    best, before = disorder(places, arrows), float("inf")
    while best < before:
        before = best
        for room in sorted(places, key=lambda name: -numbers[name]):
            for x in COLUMNS:
                old, new = places[room], complex(x, places[room].imag)
                other = next((name for name, place in places.items() if place == new), room)
                trial = {**places, other: old, room: new}
                if (cost := disorder(trial, arrows)) < best:
                    places, best = trial, cost
    return places


def drawing(numbers: dict[str, int], arrows: list[Arrow]) -> str:
    """Return the drawing as SVG."""
    places = layout(numbers, arrows)
    height = int(max(place.imag for place in places.values())) + 40
    head = '<marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        "<title>The rooms of initlab; an arrow points from a room to one that it imports</title>",
        f"<style>{STYLE}</style>",
        f'<defs>{head}<path class="head" d="M0 0 L8 4 L0 8 Z"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
    ]
    for number, y in sorted({(numbers[room], int(place.imag)) for room, place in places.items()}):
        parts.append(f'<line class="row" x1="52" y1="{y}" x2="{WIDTH - 10}" y2="{y}"/>')
        parts.append(f'<text class="number" x="36" y="{y + 5}" text-anchor="end">{number}</text>')
    for controls in routes(places, arrows).values():
        a, b, c, d = (f"{point.real:.0f} {point.imag:.0f}" for point in controls)
        parts.append(f'<path class="arrow" marker-end="url(#head)" d="M{a} C{b} {c} {d}"/>')
    for room, place in places.items():
        x, y = int(place.real), int(place.imag)
        size = f'width="{BOX}" height="{HEIGHT}" rx="6"'
        parts.append(f'<rect class="box" x="{x - BOX // 2}" y="{y - HEIGHT // 2}" {size}/>')
        parts.append(f'<text class="name" x="{x}" y="{y + 5}" text-anchor="middle">{room}</text>')
    return "\n".join([*parts, "</svg>", ""])


def tables(numbers: dict[str, int], imports: dict[str, set[str]]) -> dict[str, str]:
    """Return the generated tables of the page by the names of their markers."""
    order = sorted(numbers, key=lambda name: (-numbers[name], name))
    rooms = ["| | room | what it is | imports |", "|---:|---|---|---|"]
    for room in order:
        others = ", ".join(name for name in order if name in imports[room])
        rooms.append(f"| {numbers[room]} | `{room}` | {purpose(room)} | {others} |")
    libraries = ["| library or call | files and rooms that may use it |", "|---|---|"]
    for library, places in read_table("LIBRARIES").items():
        libraries.append(f"| `{library}` | {', '.join(f'`{place}`' for place in places)} |")
    return {"rooms": "\n".join(rooms), "libraries": "\n".join(libraries)}


def generate() -> dict[Path, str]:
    """Return the generated files: path -> text; exit where a room has no number or a table has no place."""
    numbers = read_table("NUMBERS")
    imports = {room: imported_rooms(room) for room in numbers}
    if unknown := set().union(*imports.values()) - set(numbers):
        raise SystemExit(f"tests/test_walls.py has no number for {', '.join(sorted(unknown))}.")
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables(numbers, imports).items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            raise SystemExit(f"docs/architecture.md has no {start} … {end} to fill.")
        page = page.partition(start)[0] + f"{start}\n{table}\n{end}" + page.partition(end)[2]
    return {PAGE: page, DRAWING: drawing(numbers, direct_arrows(imports))}


def main() -> None:
    """Write the generated files, or with `--check` exit with 1 where one is stale."""
    for path, text in generate().items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.relative_to(ROOT)} is stale: run python scripts/draw_house.py")


if __name__ == "__main__":
    main()
