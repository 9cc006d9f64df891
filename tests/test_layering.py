"""Imports only go down, a system never imports a system, and `import flatirons` alone is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "flatirons"
FLOORS = {"types": 0, "core": 1, "nets": 2, "envs": 2, "data": 2, "plan": 2, "systems": 3, "studies": 4, "run": 5}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem == "types")


def imported(path: Path) -> set[tuple[str, ...]]:
    """Every module of Flatirons that a file imports, anywhere in it, as the parts after `flatirons`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {tuple(name.split(".")[1:]) for name in found if name.split(".")[0] == "flatirons"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    floor, own_name = parts[0], parts[1] if len(parts) > 2 else path.stem
    for parts in imported(path):
        if floor == "run" and (not parts or parts[0] not in FLOORS):
            continue  # the top floor may use the public names
        assert parts, f"{floor}/{path.name} imports flatirons itself"
        below = FLOORS[parts[0]] < FLOORS[floor]
        at_home = parts[0] == floor and (floor != "systems" or own_name in ("__init__", *parts[1:2]))
        assert below or at_home, f"{floor}/{path.name} imports flatirons.{'.'.join(parts)}, which is not below it"


def test_import_is_light() -> None:
    code = "import sys, flatirons; print([m for m in ('jax', 'numpy', 'gymnasium', 'tyro', 'rich', 'matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
