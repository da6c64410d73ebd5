"""Shortcuts that this project does not take; each ban is tried on a snippet that breaks it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "firkin"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST = 800  # lines

# Calls by the last part of their name, whatever they are called on.
BANNED_METHODS = {
    "extractall": "unpacks an archive past linux/paths.py",
    "extract": "unpacks an archive past linux/paths.py",
    "unpack_archive": "unpacks an archive past linux/paths.py",
}
# Calls by their whole name, or imports of it.
BANNED_NAMES = {
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "subprocess.getoutput": "runs a shell",
    "subprocess.getstatusoutput": "runs a shell",
    "eval": "executes text",
    "exec": "executes text",
}
FORKS = {"os.fork", "os.forkpty", "pty.fork", "pty.spawn"}
LIBRARIES = {
    "CDLL",
    "PyDLL",
    "ctypes.CDLL",
    "ctypes.PyDLL",
    "ctypes.cdll.LoadLibrary",
    "ctypes.pydll.LoadLibrary",
    "ctypes.util.find_library",
}
EXITS = {"sys.exit", "exit", "quit", "SystemExit"}
# A constant that is the name of a host: where images come from is not ours to say.
HOST = re.compile(
    r"(?:(?<=//)|(?<![\w./-]))(?:[a-z0-9-]+\.)+(?:io|com|org|net|dev|cloud|land)(?![\w.-])"
)


def full_names(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for: ``{"fork": "os.fork", "sp": "subprocess"}``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def swallows_everything(handler: ast.ExceptHandler) -> bool:
    """Tell whether a handler catches BaseException and goes on as if nothing had been."""
    caught = ast.unparse(handler.type) if handler.type else ""
    idle = all(
        isinstance(node, ast.Pass | ast.Continue)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in handler.body
    )
    return bool(re.search(r"\bBaseException\b", caught)) and idle


def problems(text: str, name: str) -> Iterator[str]:
    """Yield what is wrong with a module.

    Args:
        text: its source.
        name: its path below ``src/firkin``.
    """
    tree = ast.parse(text)
    names = full_names(tree)
    room = name.split("/")[0]
    if len(text.splitlines()) > LONGEST:
        yield f"more than {LONGEST} lines"
    if not ast.get_docstring(tree):
        yield "1: no docstring"
    documentation = docstrings(tree)

    def resolved(node: ast.expr) -> str:
        head, dot, rest = ast.unparse(node).partition(".")
        return names.get(head, head) + dot + rest

    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute | ast.Name):
            full = resolved(node)
            if full in BANNED_NAMES:
                yield f"{line}: {full} {BANNED_NAMES[full]}"
            if full in FORKS and name != "linux/clone.py":
                yield f"{line}: {full} forks outside linux/clone.py"
            if full in LIBRARIES and room != "linux":
                yield f"{line}: {full} loads a C library outside linux/"
            if full in EXITS and room not in {"cli", "__main__.py"}:
                yield f"{line}: {full} exits below cli/"
            if full == "print" and room != "cli":
                yield f"{line}: prints below cli/"
        if isinstance(node, ast.Attribute) and node.attr in BANNED_METHODS:
            yield f"{line}: {node.attr} {BANNED_METHODS[node.attr]}"
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "preexec_fn":
                    yield f"{line}: preexec_fn runs Python between fork and exec"
                constant = isinstance(keyword.value, ast.Constant)
                if keyword.arg == "shell" and not (constant and keyword.value.value is False):  # type: ignore[attr-defined]
                    yield f"{line}: shell=True"
            if resolved(node.func) in {"contextlib.suppress"} and any(
                ast.unparse(argument) == "BaseException" for argument in node.args
            ):
                yield f"{line}: suppresses every exception"
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{line}: bare except"
            elif swallows_everything(node):
                yield f"{line}: swallows every exception"
        if isinstance(node, ast.Assert):
            yield f"{line}: assert vanishes under -O"
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
            and (host := HOST.search(node.value))
        ):
            yield f"{line}: names the host {host[0]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_shortcut_is_taken(path: Path) -> None:
    assert list(problems(path.read_text(), str(path.relative_to(SOURCE)))) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("image/a.py", "import tarfile\ntarfile.open('x').extractall('y')"),
        ("image/a.py", "def f(tar):\n    tar.extract('y')"),
        ("image/a.py", "import shutil\nshutil.unpack_archive('y')"),
        ("runtime/a.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
        ("runtime/a.py", "import subprocess\nsubprocess.run('ls', shell=bool(1))"),
        ("runtime/a.py", "import subprocess\nsubprocess.Popen(['ls'], preexec_fn=None)"),
        ("runtime/a.py", "import os\nos.system('ls')"),
        ("runtime/a.py", "from os import system as run\nrun('ls')"),
        ("runtime/a.py", "import os as o\no.popen('ls')"),
        ("runtime/a.py", "print('x')"),
        ("runtime/a.py", "import sys\nsys.exit(1)"),
        ("runtime/a.py", "raise SystemExit"),
        ("cli/a.py", "try:\n    f()\nexcept:\n    raise"),
        ("cli/a.py", "try:\n    f()\nexcept BaseException:\n    pass"),
        ("cli/a.py", "try:\n    f()\nexcept (OSError, BaseException) as e:\n    ..."),
        ("cli/a.py", "import contextlib\nwith contextlib.suppress(BaseException):\n    f()"),
        ("runtime/a.py", "import os\nos.fork()"),
        ("linux/a.py", "import os\nfork = os.fork"),
        ("linux/a.py", "from os import fork\nfork()"),
        ("linux/a.py", "import pty\npty.fork()"),
        ("runtime/a.py", "import ctypes\nctypes.CDLL(None)"),
        ("runtime/a.py", "from ctypes import CDLL\nCDLL('libc.so.6')"),
        ("runtime/a.py", "import ctypes.util\nctypes.util.find_library('c')"),
        ("spec/a.py", "assert True"),
        ("spec/a.py", "eval('1')"),
        ("spec/a.py", "exec('1')"),
        ("image/a.py", "DEFAULT = 'registry.example.com'"),
        ("image/a.py", "def f(tag):\n    return f'https://registry.example.io/{tag}'"),
        ("spec/a.py", "\n" * (LONGEST + 1)),
    ],
)
def test_a_shortcut_is_found(name: str, text: str) -> None:
    assert list(problems(f'"""Docs."""\n{text}', name))


def test_a_missing_docstring_is_found() -> None:
    assert list(problems("x = 1", "spec/a.py")) == ["1: no docstring"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cli/a.py", "import sys\nprint('x')\nsys.exit(0)"),
        ("linux/clone.py", "import os\nos.fork()"),
        ("linux/libc.py", "import ctypes\nctypes.CDLL(None)"),
        ("image/a.py", "def f(tar):\n    return tar.extractfile('x').read()"),
        ("image/a.py", "import subprocess\nsubprocess.run(['ls'], shell=False)"),
        ("runtime/a.py", "try:\n    f()\nexcept BaseException:\n    undo()\n    raise"),
        ("runtime/a.py", "FILES = ['io.max', 'cgroup.procs', 'linux.resources.blockIO', 'a.json']"),
        ("spec/a.py", "def f():\n    'See https://man7.org/x and the host example.com.'"),
        ("image/a.py", "LABEL = 'org.opencontainers.image.title'"),
        ("init/a.py", "import os\nos._exit(1)"),
    ],
)
def test_what_is_right_passes(name: str, text: str) -> None:
    assert list(problems(f'"""Docs."""\n{text}', name)) == []
