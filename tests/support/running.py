"""A container that runs while the test looks at it from the host, through the kernel's files."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from support import leftovers
from support.command import Firkin, end
from support.requires import cgroup_mounts

PATIENCE = 20.0  # seconds


def wait_until(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Return what *condition* returns once that is true; fail the test if it never is."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience:g} s in vain for {what or condition}", pytrace=False)
        time.sleep(0.005)
    return found


class Running:
    """``firkin run OPTIONS IMAGE …`` whose command has started, and ends with the ``with`` block.

    The command runs *script*, says "up" and waits for its input to end.

    Attributes:
        process: the ``firkin`` process.
        pid: the command's process, by its number on the host.
    """

    def __init__(
        self,
        firkin: Firkin,
        image: str | os.PathLike[str],
        *options: str | os.PathLike[str],
        script: str = ":",
        user: str | None = None,
        **popen: Any,
    ) -> None:
        shell = ["/bin/sh", "-c", f"{script}\necho up\nread line"]
        words = ["run", "-i", *options, image, *shell]
        self.process = firkin.start(*words, user=user, stdin=subprocess.PIPE, **popen)
        self._await_up()

    @classmethod
    def of(cls, command: list[str], **popen: Any) -> Running:
        """Return the container that another runtime's *command* starts; it has to say "up"."""
        self = cls.__new__(cls)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(
            command, text=True, start_new_session=True, **{**pipes, **popen}
        )
        self._await_up()
        return self

    def _await_up(self) -> None:
        out = self.process.stdout
        assert out
        try:
            while True:
                if not select.select([out], [], [], PATIENCE)[0]:
                    pytest.fail("the container did not start", pytrace=False)
                line = out.readline()
                if not line:
                    _, err = self.process.communicate(timeout=5)
                    pytest.fail(f"the container did not start: {err}", pytrace=False)
                if line.strip() == "up":
                    break
        except BaseException:
            end(self.process)
            raise
        self.pid = self._first()

    def _first(self) -> int:
        """Return the first process below ours that is in another PID namespace, else a child."""
        own = os.readlink("/proc/self/ns/pid")
        below = leftovers.descendants(self.process.pid)
        for pid in below:
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") != own:
                    return pid
            except OSError:
                continue  # firkin's own, which nobody may look into
        return below[0]

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            end(self.process)
            if kind is None:
                pytest.fail("the container did not end", pytrace=False)

    def proc(self, name: str) -> str:
        """Return the text of ``/proc/PID/NAME``."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def status(self, field: str) -> str:
        """Return a field of ``/proc/PID/status``."""
        for line in self.proc("status").splitlines():
            if line.startswith(field + ":"):
                return line.partition(":")[2].strip()
        raise KeyError(field)

    def cgroup(self, controller: str) -> Path:
        """Return the folder of the cgroup that limits the command by *controller*."""
        return cgroup_of(self.pid, controller)


def cgroup_of(pid: int, controller: str) -> Path:
    """Return the folder of the cgroup of *pid* that has *controller*, on v1 or v2."""
    mounts = cgroup_mounts()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or (
            not controllers and mounts.get(controller) == mounts.get("unified")
        ):
            return Path(mounts[controller] + path)
    raise KeyError(controller)
