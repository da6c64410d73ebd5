"""What ``firkin run`` loads before its first fork: each module costs every start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What an interpreter brings with it (-I -S), its start-up and the codecs of a locale.
BARE = words(
    """
    __main__ _abc _codecs _collections_abc _frozen_importlib _frozen_importlib_external _imp _io
    _signal _stat _thread _warnings _weakref abc builtins codecs encodings encodings.aliases
    encodings.ascii encodings.utf_8 genericpath io marshal ntpath os os.path posix posixpath stat
    sys time winreg zipimport
    """
)
# What a site-packages folder may add: site itself and its hooks.
SITE = words("site _sitebuiltins sitecustomize usercustomize")
# What firkin needs of the standard library; each is built in or small. To add one, measure it
# with `python -X importtime` and say here what for.
ALLOWED = words(
    """
    __future__ _ctypes _struct ctypes ctypes._endian struct
    _socket errno fcntl gc select types zlib
    """
)
if os.geteuid() != 0:
    ALLOWED |= {"pwd"}  # the names in /etc/subuid
# Never, for what they cost (docs/architecture.md): milliseconds each.
BANNED = words(
    """
    argparse ast asyncio collections contextlib copy dataclasses datetime email enum functools
    glob hashlib heapq importlib.metadata importlib.resources inspect json locale logging
    multiprocessing operator pathlib pickle platform random re selectors shlex shutil signal
    socket ssl string subprocess tarfile tempfile textwrap threading traceback typing urllib
    warnings weakref
    zipfile
    """
)
FIRKIN_MODULES = 57 if os.geteuid() == 0 else 59  # packages counted; idmap, userns for users

# Prints the modules where the child would be made, and makes none.
HOOK = """
import sys
sys.path.insert(0, {source!r})
sys.argv = ["firkin", *{argv!r}]
import firkin.linux.clone as clone
def stop(*_):
    import os
    os.write(1, " ".join(sorted(sys.modules)).encode())
    raise OSError(1, "stopped here")
clone.clone = stop
from firkin.cli.main import main
main()
"""


def loaded(root: Path, store: Path, *options: str) -> frozenset[str]:
    """Return the modules that are there when ``firkin run OPTIONS`` makes its child."""
    argv = ["run", *options, str(root), "true"]
    script = HOOK.format(source=str(SOURCE), argv=argv)
    for name in ("store", "state"):
        (store / name).mkdir(exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "FIRKIN_STORE": str(store / "store"),
        "FIRKIN_STATE": str(store / "state"),
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "stopped here" in done.stderr, done.stderr
    return frozenset(done.stdout.split())


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the seccomp filter is compiled already, as at every start but the first."""
    folder = tmp_path_factory.mktemp("store")
    for options in CASES.values():
        loaded(image(folder), folder, *options)
    return folder


def image(folder: Path) -> Path:
    root = folder / "root"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    return root


LIMITS = ["--pids-limit", "100", "--memory", "64m", "--cpus", "1"]
# What people give at every other start.
CASES = {
    "plain": [],
    "limits": LIMITS if os.geteuid() == 0 else [],
    "options": ["-e", "A=b", "-w", "/tmp", "--hostname", "x", "--cap-drop", "ALL", "--read-only"],
    "volumes": ["-v", "/usr:/mnt:ro", "--tmpfs", "/x"],
    "user": ["--user", "1000:1000"],
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_loaded_that_is_not_needed(warm: Path, case: str) -> None:
    found = loaded(image(warm), warm, *CASES[case])
    own = {name for name in found if name.partition(".")[0] == "firkin"}
    others = found - own - BARE - SITE
    assert others <= ALLOWED, f"not on the list: {sorted(others - ALLOWED)}"
    assert len(own) <= FIRKIN_MODULES, sorted(own)


def test_the_list_has_nothing_expensive_on_it() -> None:
    assert not (ALLOWED | BARE) & BANNED


def test_the_list_has_nothing_on_it_that_nobody_needs(warm: Path) -> None:
    found = loaded(image(warm), warm, *CASES["limits"])
    assert found >= ALLOWED


@pytest.mark.parametrize("name", sorted({"json", "re", "typing", "enum", "subprocess"}))
def test_the_test_would_see_it(warm: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these, loaded by any module of firkin's, shows."""
    monkeypatch.setattr(sys.modules[__name__], "HOOK", f"import {name}\n" + HOOK)
    others = loaded(image(warm), warm) - BARE - SITE - ALLOWED
    assert name in others
