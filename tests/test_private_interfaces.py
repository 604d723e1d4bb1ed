"""Private interfaces of libraries: each is reached from one file, and anywhere else none is used."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "initlab"
# Documented, in spite of the underscore.
PUBLIC = {"_replace", "_asdict", "_fields", "_exit", "_target_"}
# file -> what it reaches, and why there
FILES = {
    "config/hydra_interface.py": "Hydra's composition and its flags",
    "inspection/torch_internals.py": "torch's tables of parameters and buffers, and base classes of layers",
    "training/fused_kernels.py": "torch's fused and foreach kernels",
}


def own_names(source: Path) -> set[str]:
    """Return every name that the package itself defines, as a variable, an attribute, an argument or a function."""
    names = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    return names


def is_private(name: str) -> bool:
    """Has a name one leading underscore, and is no documented exception?"""
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in PUBLIC


def private_uses(text: str, own: set[str]) -> set[str]:
    """Return the private names of other libraries that a file uses: attributes, imports, and getattr by string."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("initlab"):
            found |= {part for part in (node.module or "").split(".") if is_private(part)}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            second = node.args[1] if len(node.args) > 1 else None
            if isinstance(second, ast.Constant) and is_private(str(second.value)) and second.value not in own:
                found.add(str(second.value))
    return found


OWN = own_names(SOURCE)
PATHS = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", [path for path in PATHS if path not in FILES])
def test_a_file_uses_public_interfaces_only(path):
    assert private_uses((SOURCE / path).read_text(encoding="utf-8"), OWN) == set()


@pytest.mark.parametrize("path", FILES)
def test_a_listed_file_reaches_something(path):
    assert private_uses((SOURCE / path).read_text(encoding="utf-8"), OWN)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("import torch\ntorch._foreach_mul_([], 2)", {"_foreach_mul_"}),
        ("from hydra._internal.utils import x", {"_internal"}),
        ("from torch.nn.modules.conv import _ConvNd", {"_ConvNd"}),
        ("getattr(module, '_orig_mod', None)", {"_orig_mod"}),
        ("point._replace(x=1)", set()),
        ("self._own", set()),
        ("from initlab.schemes import _x", set()),
    ],
)
def test_a_private_use_is_seen(line, seen):
    assert private_uses(line, {"_own"}) == seen
