"""A container of BusyBox that a test runs by the ``firkin`` command, and looks at from outside.

``support/cases_process.py`` and ``support/cases_terminal.py`` use it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any, TypeVar

from support import leftovers
from support.command import Firkin, end, execute

PATIENCE = 20.0  # seconds that anything may take on a busy machine
T = TypeVar("T")


def eventually(look: Callable[[], T], what: str) -> T:
    """Return the first true value of *look*; fail the test if there is none in time."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)
    return found


class Box:
    """Runs commands in containers of one root file system.

    Options are one string, split as a shell would, or a list.
    """

    def __init__(self, firkin: Firkin, root: Path) -> None:
        self.firkin = firkin
        self.root = root

    def words(self, options: str | list[Any], *command: str | bytes) -> list[Any]:
        """Return the whole command line."""
        given = shlex.split(options) if isinstance(options, str) else options
        return [self.firkin.command(), "run", *given, self.root, *command]

    def env(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return self.firkin.env() | (more or {})

    def __call__(
        self,
        options: str | list[Any],
        *command: str | bytes,
        env: dict[str, str] | None = None,
        through: tuple[str, ...] = (),
        **settings: Any,
    ) -> CompletedProcess[Any]:
        """Run a container to its end; *settings* are those of :func:`execute`.

        Args:
            env: added to the environment of firkin.
            through: a command that ends by executing its arguments: starts firkin.
        """
        return execute([*through, *self.words(options, *command)], env=self.env(env), **settings)

    def read(self, options: str | list[Any], *command: str | bytes, **settings: Any) -> str:
        """Run a container that must succeed and say nothing on stderr; return its output."""
        done = self(options, *command, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    @contextlib.contextmanager
    def start(
        self, options: str | list[Any], *command: str, ready: str = "ready", **settings: Any
    ) -> Iterator[Popen[Any]]:
        """Start a container and wait for the line *ready* of its output; end it on leaving."""
        words = self.words(options, *command)[1:]
        process = self.firkin.start(*words, **settings)
        try:
            if ready:
                line = process.stdout.readline() if process.stdout else ""
                assert line == f"{ready}\n", process.communicate()
            yield process
        finally:
            stop(process)


def stop(process: Popen[Any]) -> None:
    """End *process* if it still runs, and close its pipes."""
    if process.poll() is None:
        end(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def status(pid: int | str) -> dict[str, str]:
    """Return the fields of ``/proc/PID/status``; none if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return {}
    return fields(text)


def fields(text: str) -> dict[str, str]:
    """Parse the text of ``/proc/PID/status``."""
    return {key: value.strip() for key, _, value in (s.partition(":") for s in text.splitlines())}


def first_process(firkin: int) -> int:
    """Return the host's number of the container's pid 1, below the process *firkin*."""

    def look() -> int:
        for pid in leftovers.descendants(firkin):
            numbers = status(pid).get("NSpid", "").split()
            if len(numbers) > 1 and numbers[-1] == "1":
                return pid
        return 0

    return eventually(look, "pid 1 of the container")


def gone(pid: int) -> bool:
    """Tell whether a process has ended, a zombie included."""
    return status(pid).get("State", "Z")[0] in "ZX"


def open_files(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
