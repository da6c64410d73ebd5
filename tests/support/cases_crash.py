"""What a SIGKILL leaves, at each step of a run, and what the next start makes of it.

Run as root by ``tests/root/test_crash.py`` and as an ordinary user by
``tests/rootless/test_crash.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firkin.engine.request import Request
from support import crash
from support.crash import Home

MIB = 1 << 20
ROOT = os.geteuid() == 0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def request(root: Path, what: str, **options: object) -> Request:
    """Return a request for ``/bin/true``, with all the limits that the caller may have."""
    limits = {"memory": 64 * MIB, "pids_limit": 64} if ROOT else {}
    given = {"image": str(root), "command": ["/bin/true"], "name": crash.new_name(what)}
    return Request(**{**given, **limits, **options})


def assert_ended_well(run: crash.Stopped) -> None:
    status, message = run.wait()
    assert (status, message) == (0, ""), f"status {status}: {message}"


def sweep(root: Path, home: Home) -> None:
    """Start firkin once more; this is what has to clean up."""
    with crash.start(request(root, "next"), home.env) as run:
        assert_ended_well(run)


def count_steps(root: Path, home: Home, who: str, **options: object) -> int:
    """Return how many steps a run has, once the store is set up."""
    sweep(root, home)
    with crash.start(request(root, "count", **options), home.env, who) as run:
        assert_ended_well(run)
        return run.count


def each_step(
    root: Path,
    home: Home,
    who: str,
    check: Callable[[crash.Stopped, str], str],
    stride: int,
    **options: object,
) -> int:
    """Stop a run of its own at each step, and *check* it; return how many steps there were.

    Args:
        check: given the run and its container's id, returns what is wrong.
        stride: 1 for each step, 2 for every other, and so on.
    """
    last = count_steps(root, home, who, **options)
    wrong, unreached = [], 0
    for number in range(1, last + 1, stride):
        asked = request(root, f"step{number}", **options)
        with crash.start(asked, home.env, who, number) as run:
            if not run.pid:
                # A cgroup that was still busy takes another call or two to remove.
                unreached += 1
                assert_ended_well(run)
                continue
            found = check(run, str(asked.name))
            if found:
                wrong.append(f"step {number}, {run.step}: {found}")
    assert not wrong, "\n".join(wrong)
    assert unreached <= 4
    return last


def nothing_after_the_next_start(root: Path, home: Home) -> Callable[[crash.Stopped, str], str]:
    """Return a check that kills firkin, starts another one, and looks what is left."""

    def check(run: crash.Stopped, container_id: str) -> str:
        run.kill()
        sweep(root, home)
        left = home.left(container_id)
        if not run.gone():
            left.append("a process")
        return ", ".join(left)

    return check


KINDS = {
    "plain": {},
    "init": {"init": True},
    "terminal": {"tty": True},
    "host pids": {"pid": ("host", "")},
    "joined": {"network": ("path", "/proc/self/ns/net")},
}


def check_kill_firkin_at_its_own_steps(root: Path, home: Home, stride: int) -> None:
    check = nothing_after_the_next_start(root, home)
    last = each_step(root, home, "firkin", check, stride)
    # Folders and files below 20, kernel calls another 40 as root; far fewer would mean
    # that the steps are not seen any more.
    assert last > 40


def check_kill_firkin_at_the_childs_steps(
    root: Path, home: Home, stride: int, kind: str = "plain"
) -> None:
    check = nothing_after_the_next_start(root, home)
    last = each_step(root, home, "child", check, stride, **KINDS[kind])
    assert last > 100


def check_kill_the_child(root: Path, home: Home, stride: int) -> None:
    """One clear error, and firkin itself has cleaned up."""

    def check(run: crash.Stopped, container_id: str) -> str:
        os.kill(run.pid, 9)
        status, message = run.wait()
        wrong = home.left(container_id)
        if not run.gone():
            wrong.append("a process is left")
        # After the execve nobody can tell any more: it is the command that is killed.
        expected = "cannot start the container: its first process ended with signal 9"
        if status != 125 or not message.startswith(expected) or "\n" in message:
            wrong.append(f"status {status}, {message!r}")
        return ", ".join(wrong)

    last = each_step(root, home, "child", check, stride)
    assert last > 100
