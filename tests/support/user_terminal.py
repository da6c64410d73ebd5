"""A user's terminal with firkin in it: a pseudoterminal whose master the test holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

from support.box import PATIENCE, Box, stop

RAW_OFF = termios.ICANON | termios.ECHO | termios.ISIG


class UserTerminal:
    """The terminal, 24 lines of 80 columns, and the process that runs in it.

    Attributes:
        process: firkin, the leader of the terminal's session.
        output: all that was shown so far and :meth:`expect` has not passed.
    """

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(24, 80)
        self.before = self.modes()
        self.output = b""
        self.process: subprocess.Popen[Any]

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def is_raw(self) -> bool:
        return not self.modes()[3] & RAW_OFF

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, text: bytes) -> bytes:
        """Wait until *text* is shown; return what came before it."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            assert self._read(deadline), f"no {text!r} in {self.output!r}"
        before, _, self.output = self.output.partition(text)
        return before

    def finish(self) -> bytes:
        """Wait for the end of the process; return the rest of what was shown."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still runs: {self.output!r}"
            self._read(time.monotonic() + 0.01)
        while self._read(time.monotonic()):
            continue
        return self.output

    def _read(self, deadline: float) -> bool:
        if not select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: closed on the other side
            return False
        self.output += data
        return bool(data)

    def hang_up(self) -> None:
        """Close the window: the session's leader gets SIGHUP."""
        os.close(self.slave)
        os.close(self.master)
        self.slave = self.master = -1

    def close(self) -> None:
        for fd in (self.slave, self.master):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def in_terminal(
    box: Box,
    options: str,
    *command: str,
    words: list[Any] | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[UserTerminal]:
    """Run a container from a terminal, as its session's leader; end it on leaving.

    Args:
        words: another command line than firkin's.
    """
    with terminal_of(words or box.words(options, *command), box.env(env)) as terminal:
        yield terminal


@contextlib.contextmanager
def terminal_of(words: list[Any], env: dict[str, str]) -> Iterator[UserTerminal]:
    """Run any command from a terminal, as its session's leader; end it on leaving."""
    terminal = UserTerminal()
    try:
        terminal.process = subprocess.Popen(
            ["setsid", "--ctty", *words],
            env={"TERM": "xterm"} | env,
            stdin=terminal.slave,
            stdout=terminal.slave,
            stderr=terminal.slave,
        )
        try:
            yield terminal
        finally:
            stop(terminal.process)
    finally:
        terminal.close()
