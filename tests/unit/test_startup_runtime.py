"""What the short verbs of ``firkin-runtime`` load: more than they do costs the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

# Each costs milliseconds, and none is needed to read a record, a FIFO or a cgroup's file.
BANNED_WORDS = """
    ctypes json re typing enum dataclasses argparse subprocess signal socket selectors struct
    hashlib logging threading pathlib tempfile shutil datetime functools contextlib
    firkin.linux.libc firkin.spec.validate firkin.runtime.compiler firkin.runtime.launch
    """
BANNED = frozenset(BANNED_WORDS.split())

# Writes the modules that are there in the end into a file. sys.argv is that of the command.
SCRIPT = """
import os, sys
sys.path.insert(0, {source!r})
sys.argv = ["firkin-runtime", *{argv!r}]
end = os._exit
def tell(status):
    with open({path!r}, "w") as file:
        file.write(" ".join(sorted(sys.modules)))
    end(status)
os._exit = tell
from firkin.cli.oci.main import main
main()
"""


def loaded(folder: Path, *argv: str) -> tuple[int, frozenset[str]]:
    """Return the exit status of ``firkin-runtime ARGV`` and the modules that it loaded."""
    path = folder / "modules"
    script = SCRIPT.format(source=str(SOURCE), argv=list(argv), path=str(path))
    done = subprocess.run(
        [sys.executable, "-ISc", script], capture_output=True, timeout=60, check=False
    )
    return done.returncode, frozenset(path.read_text().split())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one container, whose process has ended."""
    folder = tmp_path / "root" / "one"
    folder.mkdir(parents=True)
    record = {"id": "one", "pid": 1, "started": 0, "created": True, "bundle": "/b"}
    (folder / "state.json").write_text(json.dumps(record))
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["state", "one"], 0),
        (["list"], 0),
        (["start", "one"], 1),
        (["kill", "one", "TERM"], 1),
        (["delete", "one"], 0),
        (["delete", "--force", "nosuch"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_is_loaded_that_is_not_needed(
    root: Path, tmp_path: Path, argv: list[str], status: int
) -> None:
    found, modules = loaded(tmp_path, "--root", str(root), *argv)
    assert found == status
    assert "firkin.runtime.lifecycle.folder" in modules
    assert not modules & BANNED


def test_the_test_would_see_it(root: Path, tmp_path: Path) -> None:
    """`features` needs the kernel's tables, and so ctypes."""
    _, modules = loaded(tmp_path, "--root", str(root), "features")
    assert modules & BANNED
