"""Containers that stay up while a test looks at them from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.command import Firkin, end


class Running:
    """A container whose command waits for the end of its input.

    Attributes:
        process: the firkin that runs it.
        pid: its first process, by the number that the host knows.
        output: the lines that its script wrote.
    """

    def __init__(self, process: subprocess.Popen[Any], output: list[str]) -> None:
        self.process = process
        self.output = output
        self.pid = leftovers.descendants(process.pid)[0]

    def namespace(self, kind: str) -> str:
        """Return the name of a namespace, as ``net:[4026531840]``; *kind* as in /proc/PID/ns."""
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def read(self, name: str) -> str:
        """Return the text of a file below ``/proc/PID``."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def path(self, name: str) -> Path:
        """Return the host's way to a path of the container."""
        return Path(f"/proc/{self.pid}/root", name.lstrip("/"))

    def mounts(self) -> dict[str, list[str]]:
        """Return each mount point's options, file system type and file system options."""
        found = {}
        for line in self.read("mountinfo").splitlines():
            head, _, tail = line.partition(" - ")
            kind, _source, options = tail.split(" ", 2)
            found[leftovers.unescape(head.split()[4])] = [head.split()[5], kind, options]
        return found

    def tell(self, line: str = "") -> None:
        """Write a line to the command's standard input."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str]:
        """Let the command end; return firkin's status and what else was written."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out + err


@contextlib.contextmanager
def running(
    firkin: Firkin,
    *options: str | os.PathLike[str],
    image: str | os.PathLike[str],
    script: str = "",
    then: str = "exec cat",
    user: str | None = None,
    **more: Any,
) -> Iterator[Running]:
    """Run *script* by the shell of *image*, and hold the container at its end.

    Args:
        options: of ``firkin run``.
        then: what the shell does after the script, until its input ends.
        user: as for :class:`~support.command.Firkin`; *more*, too.
    """
    command = ["sh", "-c", f"{script}\necho ready\n{then}"]
    process = firkin.start(
        "run", "-i", *options, image, *command, stdin=subprocess.PIPE, user=user, **more
    )
    try:
        output: list[str] = []
        for line in iter(process.stdout.readline, ""):
            if line == "ready\n":
                break
            output.append(line.rstrip("\n"))
        else:
            pytest.fail(f"the container did not start: {output} {process.communicate()}")
        yield Running(process, output)
    finally:
        if process.returncode is None:
            try:
                process.communicate(timeout=10)
            except (subprocess.TimeoutExpired, ValueError):
                end(process)


def refused(done: subprocess.CompletedProcess[Any], *parts: str, status: int = 125) -> str:
    """Check that firkin refused in one clear line with *parts* in it; return the line."""
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(("firkin: cannot ", "firkin: invalid configuration: "))
    for part in parts:
        assert part in lines[0]
    return lines[0]
