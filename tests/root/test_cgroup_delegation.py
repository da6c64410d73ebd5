"""What an ordinary user gets: nothing without a delegated cgroup, all limits within one."""

from __future__ import annotations

import os
import pwd
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from firkin.runtime.cgroups import detect, remove_paths
from support.command import SHARED_PYTHON
from support.requires import need

PATIENCE = 30.0  # seconds


@pytest.fixture
def name() -> str:
    return f"/firkin-{uuid.uuid4().hex}"


# Waits until root has put it where it belongs; then reports what it got, and what happened.
USER = """
import os, sys, subprocess
from firkin.errors import FirkinError
from firkin.runtime.cgroups import detect, open_cgroup
sys.stdin.readline()
try:
    cgroup = open_cgroup(detect(), sys.argv[1], eval(sys.argv[2]))
    print(type(cgroup).__name__, flush=True)
    cgroup.check(); cgroup.create(); cgroup.apply()
    script = "read go; for i in 1 2 3 4 5 6; do sleep 1000 & done"
    child = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    cgroup.join(child.pid)
    cgroup.apply_memory()
    if cgroup.paths():
        child.stdin.write(b"\\n")
        child.stdin.close()
        child.wait()
        print("denied", cgroup.stats().pids_denied)
    cgroup.kill()
    print("ended", child.wait())
    cgroup.remove()
except FirkinError as error:
    print(type(error).__name__, error)
"""


def as_ordinary_user(path: str, resources: str, place: Callable[[int], None]) -> str:
    """What the script above prints for an ordinary user, once *place* moved the process."""
    need("user:firkin-test")
    user = pwd.getpwnam("firkin-test")
    with subprocess.Popen(
        [SHARED_PYTHON, "-c", USER, path, resources],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            place(process.pid)
            out, _ = process.communicate("\n", timeout=PATIENCE)
        finally:
            process.kill()
    return out


def test_limits_are_refused_to_a_user_without_a_cgroup(name: str) -> None:
    out = as_ordinary_user(name, "{'pids': {'limit': 5}}", lambda pid: None)
    assert out.startswith(f"Unsupported cannot create cgroup {detect().controllers['pids'].mount}")
    assert "no right to write in /sys/fs/cgroup" in out
    assert "have a cgroup delegated to you" in out


def test_without_limits_a_user_needs_no_cgroup(name: str) -> None:
    assert as_ordinary_user(name, "{}", lambda pid: None) == "NoCgroup\nended -9\n"


def test_a_delegated_cgroup_is_used(name: str) -> None:
    need("user:firkin-test")
    user = pwd.getpwnam("firkin-test")
    layout = detect()
    tops = {h.mount + name for c, h in layout.controllers.items() if c in ("pids", "memory")}
    try:
        for top in tops:
            os.mkdir(top)
            if layout.version == "v2":
                Path(top, "../cgroup.subtree_control").resolve().write_text("+pids +memory")
                os.mkdir(f"{top}/own")
            for file in ("", "cgroup.procs", "tasks", "cgroup.subtree_control", "own/cgroup.procs"):
                if Path(top, file).exists():
                    os.chown(Path(top, file), user.pw_uid, user.pw_gid)

        def place(pid: int) -> None:
            for top in tops:
                Path(top, "own" if layout.version == "v2" else "", "cgroup.procs").write_text(
                    str(pid)
                )

        out = as_ordinary_user("box", "{'pids': {'limit': 4}, 'memory': {'limit': 1 << 26}}", place)
        assert out.startswith("Cgroup\ndenied ")
        assert int(out.split()[2]) > 0
    finally:
        remove_paths(tops)
