"""The table of rooms in docs/architecture.md, checked against every import.

The table is read from the document, so that document and code cannot disagree.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[2]
SOURCE = PROJECT / "src" / "firkin"
TABLE = (PROJECT / "docs" / "architecture.md").read_text()
MODULES = sorted(SOURCE.rglob("*.py"))
# Below every room; `firkin` itself holds the version.
EVERYWHERE = {"", "errors"}


class Room(NamedTuple):
    """A row of the table: layer, rooms that it may import, standard modules if it lists any."""

    layer: int
    below: frozenset[str]
    standard: frozenset[str]


def read_table(text: str) -> dict[str, Room]:
    """Read the rows ``| L3 | `image/` | … | spec, linux |`` of a Markdown table."""
    rows = re.findall(r"^\| L(\d) \| `(\w+)/`.*?\|.*\| ([^|]+) \|$", text, re.MULTILINE)
    layers = {name: int(layer) for layer, name, _ in rows}
    rooms = {}
    for layer, name, may in rows:
        upto = re.match(r"all below|L(\d) and below", may)
        if upto:
            top = int(upto[1]) if upto[1] else int(layer) - 1
            below = {room for room, level in layers.items() if level <= top}
        else:
            below = set(re.findall(r"\b\w+\b", may)) & set(layers)
        standard = frozenset(re.findall(r"`(\w+)`", may))
        rooms[name] = Room(int(layer), frozenset(below), standard)
    return rooms


ROOMS = read_table(TABLE)


class Import(NamedTuple):
    """One imported module: its full name, the line, and whether only a type checker sees it."""

    module: str
    line: int
    typing_only: bool


def imports_of(text: str, package: str) -> list[Import]:
    """Return all imports of a module of *package*, wherever in it they stand.

    ``importlib.import_module`` and ``__import__`` count with their constant
    argument; with any other argument the module is ``<computed>``.
    """
    found: list[Import] = []

    def visit(node: ast.AST, typing_only: bool) -> None:
        names: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            # `from firkin import linux` imports the room as much as `import firkin.linux`.
            names = [f"{base}.{a.name}" for a in node.names] if base == "firkin" else [base]
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).split(".")[-1]
            if called in {"import_module", "__import__"}:
                first = node.args[0]
                names = [str(first.value) if isinstance(first, ast.Constant) else "<computed>"]
        found.extend(Import(name, line, typing_only) for name in names)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for inner in node.body:
                visit(inner, True)
            for inner in node.orelse:
                visit(inner, typing_only)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, typing_only)

    visit(ast.parse(text), False)
    return found


def room_of(module: str) -> str:
    """Return the room of ``firkin.ROOM.…``; empty for firkin itself and what it defines."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in ROOMS or (SOURCE / f"{name}.py").exists() else ""


def wrong(text: str, room: str, dependencies: set[str]) -> list[str]:
    """Return what a module of *room* imports and must not."""
    messages = []
    for module, line, typing_only in imports_of(text, f"firkin.{room}" if room else "firkin"):
        top = module.split(".")[0]
        if module == "<computed>":
            if room != "cli":
                messages.append(f"{line}: imports a computed name")
        elif top == "firkin":
            target = room_of(module)
            allowed = ROOMS[room].below | {room} if room in ROOMS else frozenset()
            if target not in allowed | EVERYWHERE:
                messages.append(f"{line}: {room or 'firkin'} must not import {module}")
        elif typing_only:
            continue
        elif top not in sys.stdlib_module_names:
            if module not in dependencies and top not in dependencies:
                messages.append(f"{line}: {module} is no dependency in pyproject.toml")
        elif (
            room in ROOMS
            and ROOMS[room].standard
            and top not in ROOMS[room].standard | {"__future__"}
        ):
            messages.append(f"{line}: {room} must not import {module}")
    return messages


def dependencies() -> set[str]:
    """Return the names that pyproject.toml lists, which are those of the modules."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]}
    # Another name for the same thing: 3.14 has it, and older Pythons must not fail here.
    return names | {"compression"}


def test_the_table_is_read() -> None:
    assert set(ROOMS) >= {"cli", "engine", "image", "runtime", "init", "spec", "linux"}
    assert ROOMS["cli"].below == set(ROOMS) - {
        name for name, room in ROOMS.items() if room.layer >= ROOMS["cli"].layer
    }
    assert ROOMS["image"].below == {"spec", "linux"}
    assert ROOMS["runtime"].below == {"spec", "init", "linux"}
    assert ROOMS["init"].below == {"linux"}
    assert not ROOMS["spec"].below
    assert not ROOMS["linux"].below
    assert "ctypes" in ROOMS["linux"].standard
    for room in ROOMS.values():
        assert all(ROOMS[name].layer < room.layer for name in room.below)


def test_every_room_is_in_the_table() -> None:
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert folders <= set(ROOMS), "a folder of src/firkin is not in docs/architecture.md"
    assert {path.stem for path in SOURCE.glob("*.py")} <= {"__init__", "__main__", "errors"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(SOURCE).parts
    room = parts[0] if len(parts) > 1 else "cli" if path.stem == "__main__" else ""
    assert wrong(path.read_text(), room, dependencies()) == []


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("linux", "import firkin.runtime.compile"),
        ("linux", "from firkin import spec"),
        ("linux", "def f():\n    from firkin.cli import main"),
        ("linux", "from ..runtime import compile"),
        ("linux", "from .. import runtime"),
        ("linux", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import firkin.spec"),
        ("linux", "import json"),
        ("image", "import firkin.runtime"),
        ("runtime", "import firkin.image"),
        ("runtime", "import importlib\nimportlib.import_module('firkin.engine')"),
        ("runtime", "def f(x):\n    return __import__(x)"),
        ("engine", "import firkin.cli"),
        ("spec", "import firkin.linux.libc"),
        ("init", "import firkin.spec"),
        ("cli", "import requests"),
        ("", "import firkin.linux"),
    ],
)
def test_a_wrong_import_is_found(room: str, text: str) -> None:
    assert wrong(text, room, set())


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("cli", "import firkin.engine.run, firkin.linux.libc\nimport argparse"),
        ("cli", "def f(x):\n    __import__(x)"),
        ("runtime", "from firkin.init import plan\nfrom firkin.errors import SetupError"),
        ("runtime", "from . import cgroups\nfrom .cgroups import v1\nfrom ..linux import libc"),
        ("linux", "import os, ctypes.util\nfrom firkin.linux import libc"),
        (
            "linux",
            "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from typing import Any",
        ),
        ("image", "from backports import zstd\nfrom firkin import __version__"),
    ],
)
def test_a_right_import_passes(room: str, text: str) -> None:
    assert wrong(text, room, {"backports"}) == []
