"""What a name can do to a terminal or to XML: nothing; it is shown as it is."""

import ast
import io
import json
import sys
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import hostile_names
import pytest
import torch
from fake_sweeps import Cell, write_run
from hostile_names import ALL, NAMES
from rich.live import Live
from rich.table import Table
from rich.text import Text

from initlab.cli.main import main
from initlab.cli.train import run_train as train
from initlab.system.escape import json_text, printable, printable_lines
from initlab.system.terminal import SafeConsole

SOURCE = Path(sys.modules["initlab"].__file__).parent


def can_be_seen(text):
    return text.isprintable() or all(
        c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text
    )  # fmt: skip


@pytest.fixture
def verb(monkeypatch, capsys):
    """Call `initlab` with arguments; return the exit code and all that was printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["initlab", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        told = capsys.readouterr()
        assert can_be_seen(told.out), [c for c in told.out if not can_be_seen(c)]
        assert can_be_seen(told.err), [c for c in told.err if not can_be_seen(c)]
        return code, told.out, told.err

    return call


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_spelled_out_as_python_does(name):
    assert printable(name).isprintable()
    assert printable(name) == "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    assert can_be_seen(printable_lines(name))
    assert json.loads(json_text({name: name})) == {name: name}
    assert can_be_seen(json_text({name: name}))


def test_every_character_is_safe_in_xml_json_and_on_a_line():
    edges = [
        k for plane in range(0x10000, 0x110000, 0x10000) for k in (plane, plane + 1, plane + 0xFFFE, plane + 0xFFFF)
    ]
    every = "".join(map(chr, [*range(0x3100), *range(0xD7F0, 0x10000), *edges, 0xE0001]))
    shown = printable(every)
    assert ElementTree.fromstring(f"<a>{shown.replace('&', '').replace('<', '')}</a>").text
    assert len(shown.splitlines()) == 1
    assert printable(shown) == shown
    assert json.loads(json_text(every)) == json.loads(json.dumps(every))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_screen_shows_a_name_as_it_is(name, terminal):
    out = io.StringIO()
    screen = SafeConsole(file=out, force_terminal=terminal, color_system=None, width=400, legacy_windows=False)
    table = Table(box=None)
    table.add_column(name)
    table.add_row(name)
    for shown in (name, Text(name), Text(name, style="bold red"), table):
        screen.print(shown)
    assert can_be_seen(out.getvalue())
    if not set(name) & set("\r\n\x07"):  # which rich takes out of its own texts, or for ends of lines
        assert out.getvalue().count(printable(name)) == 5


def test_a_screen_lets_richs_own_control_sequences_pass():
    out = io.StringIO()
    screen = SafeConsole(file=out, force_terminal=True, width=80, legacy_windows=False, _environ={"TERM": "xterm"})
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        live.update(Text("one", style="bold"), refresh=True)
    assert "\x1b[?25l" in out.getvalue()
    assert "\x1b[1mone" in out.getvalue()


# ---- every verb that prints a name


def test_audit(verb, tmp_path):
    target = "hostile_names:net"
    for arguments in ([], ["--all"], ["--strict", "--all"], ["--skip", "*[31m*"]):
        code, out, _ = verb("audit", target, "--init", "zeros", *arguments, "--junit", tmp_path / "found.xml")
        assert code == 1
        assert "[red]bold[/red].weight" in out
        assert len(out.splitlines()) <= 2 * len(NAMES) + 1
        suite = ElementTree.parse(tmp_path / "found.xml").getroot()
        assert len(suite) == 2 * len(NAMES)
        assert {case.get("name") for case in suite} == {printable(name) for name in hostile_names.net().state_dict()}
    _, out, _ = verb("audit", target, "--init", "zeros", "--json")
    assert {row["name"] for row in json.loads(out)["parameters"]} == set(hostile_names.net().state_dict())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_audit_of_a_file(verb, tmp_path, suffix):
    values = {f"layer.{n}{name}.weight": torch.zeros(3, 2) for n, name in enumerate(NAMES)}
    path = tmp_path / f"file.{suffix}"
    if suffix == "pt":
        torch.save(values, path)
    else:
        from safetensors.torch import save_file

        save_file({name: value for name, value in values.items() if "\ud800" not in name}, path)
    code, out, err = verb("audit", path, "--init", "ones", "--all", "--junit", tmp_path / "found.xml")
    assert code == 1, err
    assert "[red]bold[/red]" in out
    assert len(ElementTree.parse(tmp_path / "found.xml").getroot()) >= len(NAMES) - 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "hostile_names:raising", "--init", "zeros"),
        ("audit", ALL.replace("\0", ""), "--init", "zeros"),
        ("audit", "hostile_names:net", "--init", ALL),
        ("audit", "hostile_names:net", "--init", "zeros", "--set", f"{ALL}=1"),
        ("audit", "hostile_names:net", "--init", "zeros", "--role", f"{ALL}=*"),
        ("diagnose", "hostile_names:broken", "--input", "1,4"),
        ("diagnose", "hostile_names:raising", "--input", "1,4"),
        ("diagnose", "hostile_names:net", "--input", ALL),
        ("report", ALL.replace("\0", "")),
        ("table", ALL.replace("\0", "")),
        ("predict", f"act={ALL}"),
        ("predict", ALL),
        ("reproduce", ALL),
        ("coordinates", f"hostile_names:{ALL}"),
        ("train", f"act={ALL}"),
        ("train", ALL),
        ("train", f"sweep.name='{ALL}'"),
        (ALL,),
        ("table", "--" + ALL),
    ],
)
def test_errors(verb, arguments):
    code, _, err = verb(*arguments)
    assert code in (1, 2), err
    assert err.count("\n") <= 3, err


def test_diagnose(verb):
    _, out, _ = verb("diagnose", "hostile_names:net", "--input", "8,4", "--all")
    assert "[red]bold[/red]" in out
    assert ":smile:" in out
    _, out, _ = verb("diagnose", "hostile_names:net", "--input", "8,4", "--json")
    layers = {row["layer"] for row in json.loads(out)["rows"]}
    assert {name.replace(".", "_") for name in NAMES} <= layers


def test_coordinates(verb):
    arguments = ["coordinates", "hostile_names:of_width", "--input", "4,4", "--widths", "4,8", "--steps", "1"]
    _, out, _ = verb(*arguments, "--init", "he_normal", "--optimizer", "sgd")
    assert "[red]bold[/red]" in out
    _, out, _ = verb(*arguments, "--init", "he_normal", "--optimizer", "sgd", "--json")
    assert {row["layer"] for row in json.loads(out)["rows"]} >= {"[red]bold[/red]"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Runs whose schemes, activations, layers, directories and reasons are hostile."""
    root = tmp_path_factory.mktemp("sweep")
    for number, name in enumerate(name.replace("\ud800", "") for name in NAMES):
        place = root / f"{number}{name}".replace("\0", "\udcff").replace("/", "∕")
        extra = (("setting", name), ("width", [name]))
        write_run(place, Cell(name, name, 2, number, extra=extra), steps=10, records=2, status="completed")
        rows = (place / "layers.csv").read_text(encoding="utf-8").replace("hidden.0", f'"{printable(name)}"')
        (place / "layers.csv").write_text(rows.replace('"<&"', '"<&""').replace("'>]]>\"", "'>]]>\""), encoding="utf-8")
    failed = root / "failed"
    write_run(failed, Cell("zeros", "tanh", 2, 0), steps=10, records=2, status="failed")
    told = json.loads((failed / "summary.json").read_text(encoding="utf-8"))
    told = {key: value for key, value in told.items() if key not in ("format", "crc32", "files")}
    (failed / "summary.json").write_text(json.dumps(told | {"error": ALL}))
    (root / "no \x1b[31m run").mkdir()
    (root / "bad \x1b[31m").mkdir()
    (root / "bad \x1b[31m" / "summary.json").write_text(json.dumps({"status": ALL}))
    return root


def test_report(verb, sweep, tmp_path):
    out_file = tmp_path / f"page {NAMES[1]}.html"
    code, out, err = verb("report", sweep, "--out", out_file)
    assert code == 0, err
    assert "[red]bold[/red]" in out
    assert can_be_seen(out_file.read_text(encoding="utf-8").partition("<script")[0])


@pytest.mark.parametrize("form", ["text", "csv", "markdown", "latex"])
def test_table(verb, sweep, form):
    code, out, err = verb("table", sweep, "--format", form, "--by", "init,act,setting")
    assert code == 0, err
    assert "smile" in out
    assert len(out.splitlines()) <= len(NAMES) + 8


def test_reproduce(verb, tmp_path):
    (tmp_path / "he_2015-quick").mkdir()
    (tmp_path / "he_2015-quick" / "verdict.json").write_text(json.dumps({"verdict": ALL, "seconds": 1}))
    code, out, _ = verb("reproduce", "--root", tmp_path)
    assert code == 0
    assert "verdict.json" in out  # cannot be read: the cell is folded
    assert "he_2015" in out


def test_train(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["depth=1", "width=4", "data=gaussian", "data.train_size=60", "data.test_size=20", "train.steps=2"]
    options += ["train.batch_size=20", f"hydra.run.dir='{tmp_path}/one'"]
    code = train([*options, "model=custom", "model.target=hostile_names:of_data"])
    told = capsys.readouterr()
    assert can_be_seen(told.out)
    assert can_be_seen(told.err)
    assert code in (1, 2)
    code = train(["-m", *options[:-1], "init=custom", "init.target=hostile_names:raising", "seed=0,1", "sweep.name=s"])
    told = capsys.readouterr()
    assert can_be_seen(told.out)
    assert can_be_seen(told.err)
    assert code in (1, 2)


# ---- every way to a terminal in the source


def ways(source):
    """Calls in a file that print by another way than `initlab.system.escape` and `display.Screen`."""
    tree = ast.parse(source)
    own = any(
        "print" in [alias.name for alias in node.names]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "initlab.system.escape"
    )
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "print" and not own:
            found.append(called)
        if called in ("Console", "rich.print", "console.Console", "rich.console.Console"):
            found.append(called)
        if called.split(".")[-1] in ("echo", "secho", "print_exc", "print_exception", "print_tb", "print_exception"):
            found.append(called)
        if called in ("sys.stdout.write", "sys.stderr.write", "warnings.warn", "builtins.print", "logging.warning"):
            found.append(called)
        marked = [k for k in node.keywords if k.arg == "markup" and getattr(k.value, "value", True)]
        if called == "Text.from_markup" or marked:
            found.append(called)
        if called == "print" and any("json.dumps" in ast.unparse(argument) for argument in node.args):
            found.append("json.dumps printed")
    return found


REASONS = {
    "system/escape.py": ["builtins.print"],  # the print of all others
    "data/registry.py": [],
}


@pytest.mark.parametrize("path", sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")))
def test_every_print_shows_what_cannot_be_seen(path):
    assert ways((SOURCE / path).read_text(encoding="utf-8")) == REASONS.get(path, [])


@pytest.mark.parametrize(
    "line",
    ["print(x)", "Console().print(x)", "typer.echo(x)", "sys.stdout.write(x)", "traceback.print_exc()",
     "warnings.warn(x)", "console.print(x, markup=True)", "Text.from_markup(x)"],
)  # fmt: skip
def test_the_search_sees_a_print(line):
    assert ways(line)
    assert ways("from initlab.system.escape import print\nprint(json.dumps(x))")
    assert not ways("from initlab.system.escape import print\nprint(x)")
