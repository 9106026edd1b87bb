"""The layout is the architecture: imports go down the floors of docs/architecture.md, never up or across."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"generated"}),
    frozenset({"operations"}),
    frozenset({"identity"}),
    frozenset({"transport"}),
    frozenset({"plugins"}),
    frozenset({"keystores"}),
    frozenset({"attestors", "authorities", "publishers", "governance"}),
    frozenset({"server", "agent", "discovery", "ceremony"}),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
MODULES = sorted(path for package in FLOOR for path in (ROOT / package).rglob("*.py") if package != "generated")


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at whatever depth of the code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that they read as the map does"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    above = path.relative_to(ROOT).parts[1] == "cli"
    for name in imports(path):
        target = name.split(".")[0]
        if target in FLOOR and target != room:
            assert FLOOR[target] < FLOOR[room], f"{room} must not import {name}: it is not below"
        if target == room and not above:
            assert not f"{name}.".startswith(f"{room}.cli."), f"{name} stands on top of {room}"


def test_nothing_imports_tests() -> None:
    for path in MODULES:
        assert not any(name.split(".")[0] in {"tests", "bench", "ci"} for name in imports(path)), path
