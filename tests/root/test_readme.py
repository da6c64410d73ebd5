"""The README's examples behave as printed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from support.command import environment, execute
from support.requires import requires

ROOT = Path(__file__).parents[2]


def examples(text: str) -> list[tuple[str, str]]:
    """Return the (command, expected output) pairs of the ``console`` blocks, in order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            found.append((command, expected))
    return found


def pattern(expected: str) -> str:
    """Return a regular expression for *expected*, in which ``…`` stands for anything."""
    return ".*".join(re.escape(part) for part in expected.split("…"))


def test_examples_are_found() -> None:
    assert examples("```console\n$ a\nb\nc\n$ d\n```\n") == [("a", "b\nc\n"), ("d", "")]
    assert re.fullmatch(pattern("a…c\n"), "abc\n")
    assert not re.fullmatch(pattern("a…c\n"), "abd\n")


@requires("program:busybox", "program:runc")
def test_readme(firkin: object, tmp_path: Path) -> None:
    """All of them, in order and in one folder, as a reader would type them."""
    text = (ROOT / "README.md").read_text()
    pairs = examples(text)
    assert text.count("\n**") == 10
    assert len(pairs) >= 20
    env = environment()
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env["FIRKIN_STORE"] = str(tmp_path / "store")
    env["FIRKIN_STATE"] = str(tmp_path / "state")
    wrong = []
    for command, expected in pairs:
        done = execute(["sh", "-c", f"exec 2>&1; {command}"], env=env, cwd=tmp_path)
        if not re.fullmatch(pattern(expected), done.stdout, re.DOTALL):
            wrong.append(f"$ {command}\nprinted:  {done.stdout!r}\nexpected: {expected!r}")
    if wrong:
        pytest.fail("\n\n".join(wrong), pytrace=False)
