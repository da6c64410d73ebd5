"""Processes of the host: seen, killed or traced from a container that shares no PID namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from support.attack import inside
from support.command import Firkin


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def attack(pid: int) -> str:
    return f"""
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print(len(pids), tried(os.kill, {pid}, 9), tried(os.pidfd_open, {pid}))
print(tried(os.kill, -1, 0), tried(os.readlink, "/proc/{pid}/root"))
"""


def test_they_are_not_there(firkin: Firkin, victim: subprocess.Popen[bytes]) -> None:
    done = inside(firkin, code=attack(victim.pid))
    assert done.stdout.splitlines() == ["1 ESRCH ESRCH", "ESRCH ENOENT"], done.stderr
    assert victim.poll() is None


def test_an_ordinary_user_can_not_kill_them_where_they_are(
    firkin: Firkin, victim: subprocess.Popen[bytes]
) -> None:
    # The control shares the PID namespace: seen, but another user's.
    code = f"print(tried(os.kill, {victim.pid}, 9), os.path.exists('/proc/{victim.pid}'))"
    done = inside(firkin, "--pid", "host", "-u", "12345", code=code)
    assert done.stdout == "EPERM True\n", done.stderr
    assert victim.poll() is None
    assert os.getpid() > 0
