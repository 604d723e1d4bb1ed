"""One rule for numbers, wherever YAML is read: that of Hydra's files."""

import ast
import itertools
import math
from pathlib import Path

import pytest
import yaml
from omegaconf._utils import get_yaml_loader

import initlab
from initlab.cli.arguments import parse_pairs
from initlab.cli.audit import read_rules
from initlab.config.option_files import option_names, option_values
from initlab.errors import UserError
from initlab.records.serialization import from_yaml, to_yaml
from initlab.system import safe_reading, yaml_text
from initlab.system.yaml_text import dump_yaml, load_yaml

SOURCE = Path(initlab.__file__).parent
WHOLE = ("", "0", "1", "12", "1_0", "1_", "010", "0x1F", "0b1", "0o7")
FRACTION = ("", ".", ".5", ".5_0", "._", ":30", ":30.5")
EXPONENT = ("", "e5", "E-2", "e+2", "e", "e2.0", "e1_0")
WORDS = (
    *("inf", "-inf", ".inf", "-.inf", ".Inf", "+.INF", "nan", "NaN", ".nan", ".NaN", "1e-400", "1e400", "٣e٥", "1e5٣"),
    *("yes", "no", "on", "off", "true", "True", "TRUE", "false", "null", "~", "Null", "none", "None", "he_normal"),
    *("2024-01-01", "2024-01-01T10:00:00", "12:30:45", "1e", "1e5x", "x1e5", "1.2.3", "1,5", "0.1e"),
)
TEXTS = [*map("".join, itertools.product(("", "-", "+"), WHOLE, FRACTION, EXPONENT)), *WORDS]


def plainly(value):
    return ("nan",) if isinstance(value, float) and math.isnan(value) else (type(value), value)


def test_every_scalar_is_read_as_hydra_reads_its_files():
    theirs = get_yaml_loader()
    assert len(TEXTS) > 1000
    for text in TEXTS:
        try:
            expected = plainly(yaml.load(f"a: {text}", theirs)["a"])
        except (ValueError, yaml.YAMLError):
            with pytest.raises(ValueError, match=r"\S"):
                load_yaml(f"a: {text}")
            continue
        assert plainly(load_yaml(f"a: {text}")["a"]) == expected, text


def test_what_is_written_is_read_back_as_it_was_by_both():
    texts = {f"k{k}": text for k, text in enumerate(TEXTS)}
    numbers = {f"n{k}": n for k, n in enumerate((1e-05, 1e22, 2e-2, -0.0, math.inf, 10**30, 0, True, None, 1e-320))}
    written = dump_yaml(texts | numbers)
    assert load_yaml(written) == texts | numbers
    assert yaml.load(written, get_yaml_loader()) == texts | numbers
    assert from_yaml(to_yaml(texts)) == texts


EVERY_READER = {
    "--set and --arg": lambda text, path: parse_pairs([f"std={text}"], "--set")["std"],
    "rules": lambda text, path: read_rules(path)["*"][1]["std"],
    "a record": lambda text, path: from_yaml(f"init: {{name: normal, std: {text}}}".encode())["init"]["std"],
}


@pytest.mark.parametrize("reader", EVERY_READER)
@pytest.mark.parametrize(("text", "value"), [("2e-2", 0.02), ("1E3", 1e3), ("1_0e2", 1e3), ("3", 3), ("x2", "x2")])
def test_every_reader_knows_a_number(tmp_path, reader, text, value):
    path = tmp_path / "rules.yaml"
    path.write_text(f"'*': {{name: normal, std: {text}}}\n", encoding="utf-8")
    assert plainly(EVERY_READER[reader](text, path)) == plainly(value)


def test_a_json_file_of_rules_is_read_by_the_same_rule(tmp_path):
    (tmp_path / "rules.json").write_text('{"*": {"name": "normal", "std": 2e-2}}', encoding="utf-8")
    assert read_rules(tmp_path / "rules.json") == {"*": ("normal", {"std": 0.02})}


def test_option_files_are_read_by_it(tmp_path, monkeypatch):
    (tmp_path / "act").mkdir()
    (tmp_path / "act" / "own.yaml").write_text("name: own\nslope: 2e-2\n", encoding="utf-8")
    monkeypatch.setattr("initlab.config.option_files.conf_dir", lambda: tmp_path)
    option_names.cache_clear()
    try:
        assert option_values("act", "own") == {"slope": 0.02}
    finally:
        for known in (option_names, option_values):
            known.cache_clear()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "'a' is there twice"),
        ("'*': he_normal\n'*': zeros", r"'\*' is there twice"),
        ("a: [1", "expected"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("[" * 5000, "."),
        ("1" * 5000, "."),
        ("{[1]: 2}", "unhashable"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as refused:
        load_yaml(text)
    assert "\n" not in str(refused.value)
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_rules(tmp_path / "rules.yaml")
    assert "\n" not in str(refused.value)


# ---- no other reader

READERS = {
    "parse",
    "compose",
    *(f"{how}load{all_}" for how in ("", "safe_", "full_", "unsafe_") for all_ in ("", "_all")),
}


def reads_yaml(node: ast.AST) -> bool:
    """Does a node use one of yaml's own functions or loaders, or OmegaConf's?"""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in ("yaml", "ruamel")
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
        return "yaml" in ast.unparse(node) and "Loader" in ast.unparse(node)
    if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        return False
    if node.value.id == "OmegaConf":
        return node.attr == "load"
    return node.value.id == "yaml" and (node.attr in READERS or "Loader" in node.attr)


def other_readers(source: Path) -> list[str]:
    """Lines that read YAML past `initlab.system.yaml_text`, whose loader `initlab.system.safe_reading` bounds."""
    files = [path for path in sorted(source.rglob("*.py")) if path.name not in ("yaml_text.py", "safe_reading.py")]
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in files]
    return [f"{path.name}:{node.lineno}" for path, tree in trees for node in ast.walk(tree) if reads_yaml(node)]


def test_nothing_else_reads_yaml():
    assert issubclass(safe_reading._BoundedLoader, yaml_text.YamlLoader)
    assert other_readers(SOURCE) == []
    assert other_readers(SOURCE.parent / "hydra_plugins") == []


@pytest.mark.parametrize(
    "line",
    [
        "import yaml\nyaml.safe_load('1')",
        "import yaml\nyaml.load('1', yaml.Loader)",
        "import yaml\nL = yaml.CSafeLoader",
        "import yaml\nL = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)",
        "from yaml import safe_load",
        "from omegaconf import OmegaConf\nOmegaConf.load('x')",
    ],
)
def test_another_reader_is_seen(tmp_path, line):
    (tmp_path / "new.py").write_text(line, encoding="utf-8")
    assert other_readers(tmp_path) != []
