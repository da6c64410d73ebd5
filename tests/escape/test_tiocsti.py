"""TIOCSTI: typing commands into the caller's terminal (CVE-2017-5226 in bubblewrap).

A command that has the caller's terminal can push characters into its input,
which the caller's shell reads after the command has ended. Prevented by a
session of its own, or a terminal of its own with ``-t``.
"""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.attack import PRELUDE
from support.command import Firkin, execute

PUSH = (
    PRELUDE
    + """
import fcntl, termios
def push(fd):
    fcntl.ioctl(fd, termios.TIOCSTI, b"X")
    return "pushed"
print([tried(push, fd) for fd in (0, 1, 2)])
print(tried(os.open, "/dev/tty", os.O_RDWR))
"""
)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    "options", [["-i"], ["-i", "--init"], ["-i", "--cap-add", "SYS_TTY_CONFIG"]]
)
def test_the_callers_terminal(
    firkin: Firkin, terminal: tuple[int, int], options: list[str]
) -> None:
    _, slave = terminal
    os.set_blocking(slave, False)
    # firkin's own controlling terminal, as at a shell.
    run = [firkin.command(), "run", *options, "host", "python3", "-c", PUSH]
    done = execute(
        ["setsid", "--ctty", *run], env=firkin.env(), stdin=slave, stdout=slave, stderr=slave
    )
    written = ""
    while "\n" not in written.partition("\n")[2]:
        written += os.read(terminal[0], 4096).decode()
    assert "pushed" not in written
    assert written.count("EPERM") + written.count("EIO") == 3, written
    assert "ENXIO" in written
    assert done.returncode == 0
    with pytest.raises(BlockingIOError):
        os.read(slave, 1)


def test_legacy_setting_is_the_only_other_defence() -> None:
    """The control: what the kernel itself says about TIOCSTI on this machine."""
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    assert not setting.exists() or setting.read_text().strip() in ("0", "1")
