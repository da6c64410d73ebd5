"""Stopping a run at any of its steps, so that a test can kill it exactly there.

The run is made in a fork of the test's own process. The process that comes to the
chosen step, firkin or the container's first one, tells the test its pid and waits:
nothing goes on by chance while the test looks and kills.

firkin's steps are its kernel calls (``linux/libc.py``) and what Python's audit events
tell of before it happens: files opened, folders made and removed, locks taken. The
child's are its kernel calls.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any

from firkin.engine.request import Request
from firkin.engine.run import Run
from firkin.errors import FirkinError
from firkin.init import stages
from firkin.linux import libc
from support import command, leftovers

PATIENCE = 20.0  # seconds; a whole run takes some tens of milliseconds
FILES = ("open", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.listdir")
AUDITED = frozenset((*FILES, "os.chmod", "os.chown", "fcntl.flock"))


class Home:
    """A store and a state directory of a test's own.

    Args:
        folder: where to make them.
    """

    def __init__(self, folder: Path) -> None:
        self.store, self.state = folder / "store", folder / "state"
        self.env = command.environment() | {
            "FIRKIN_STORE": str(self.store),
            "FIRKIN_STATE": str(self.state),
        }

    def left(self, container_id: str = "") -> list[str]:
        """Return what containers have left here, and their cgroups and mounts."""
        found = [f"mount: {line}" for line in leftovers.mountinfo() if str(self.store) in line]
        for folder in (self.state, self.state / ".scratch/containers", self.store / "containers"):
            names = os.listdir(folder) if folder.is_dir() else []
            found += [f"{folder}/{name}" for name in names if name != ".scratch"]
        if container_id:
            found += cgroups_of(container_id)
        return found


def cgroups_of(container_id: str) -> list[str]:
    """Return the cgroups of a container, in whatever hierarchy."""
    return [
        os.path.join(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if container_id in name
    ]


def new_name(what: str) -> str:
    """Return a container's name that nobody else on this machine uses."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


class Stopped:
    """A run that :func:`start` has started, and that stands at a step or has ended.

    Attributes:
        firkin: the pid of the process that is firkin.
        pid: of the process that stands at the step; 0 when the run ended without.
        step: what that process has done, or is about to do.
    """

    def __init__(self, firkin: int, said: socket.socket, alive: int, counted: mmap.mmap) -> None:
        self.firkin = firkin
        self._said = said
        self._alive = alive
        self._counted = counted
        self._end: str | None = None
        self.pid, self.step = 0, ""
        kind, text, sender = self._hear()
        if kind == "at":
            self.pid, self.step = sender, text
        else:
            self._end = text

    def _hear(self) -> tuple[str, str, int]:
        if not select.select([self._said], [], [], PATIENCE)[0]:
            self.kill()
            raise AssertionError("firkin hangs")
        data, ancillary, *_ = self._said.recvmsg(8192, socket.CMSG_SPACE(12))
        kind, _, text = data.decode(errors="replace").partition(" ")
        # The kernel translates the pid into our namespace (unix(7), SO_PASSCRED).
        return kind, text, struct.unpack("3i", ancillary[0][2])[0]

    @property
    def count(self) -> int:
        """How many steps there have been."""
        return int.from_bytes(self._counted[:8], sys.byteorder)

    def wait(self) -> tuple[int, str]:
        """Wait for firkin to end; return its exit status and the text of its error."""
        if self._end is None:
            self._end = self._hear()[1]
        _, status = os.waitpid(self.firkin, 0)
        return os.waitstatus_to_exitcode(status), self._end

    def kill(self) -> None:
        """Kill firkin where it stands, and wait for it."""
        os.kill(self.firkin, signal.SIGKILL)
        os.waitpid(self.firkin, 0)

    def gone(self, patience: float = PATIENCE) -> bool:
        """Tell whether, after *patience* seconds at most, no process of this run is left.

        Each of them, the container's command too, holds the write end of a pipe.
        """
        return bool(select.select([self._alive], [], [], patience)[0])

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, *_: object) -> None:
        self._said.close()
        self._counted.close()
        os.close(self._alive)


def start(request: Request, env: dict[str, str], who: str = "", number: int = 0) -> Stopped:
    """Run *request* in a process of its own, and stop it at a step.

    Args:
        request: what to run; its command has one end of a pipe as descriptor 3.
        env: the environment of firkin.
        who: ``"firkin"`` or ``"child"``: whose steps are counted; nobody's without.
        number: the step to stop at, from 1; 0 for none.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    reader, writer = os.pipe()
    counted = mmap.mmap(-1, 8)  # shared by all forks
    pid = os.fork()
    if pid == 0:
        _become_firkin(request, env, _Counter(counted, theirs, number), who, writer)
    theirs.close()
    os.close(writer)
    return Stopped(pid, ours, reader, counted)


class _Counter:
    """Counts steps, and stops at one of them."""

    def __init__(self, counted: mmap.mmap, speaker: socket.socket, number: int) -> None:
        self.counted = counted
        self.speaker = speaker
        self.number = number
        self.owner = 0  # firkin, where only its own steps count
        self.on = True

    def kernel_call(self, name: str, shown: tuple[Any, ...], *_: object) -> None:
        self._step(f"{name} {shown}")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and self.on and os.getpid() == self.owner:
            self._step(f"before {event} {arguments}")

    def _step(self, what: str) -> None:
        if not self.on:
            return
        count = int.from_bytes(self.counted[:8], sys.byteorder) + 1
        self.counted[:8] = count.to_bytes(8, sys.byteorder)
        if count == self.number:
            self.on = False
            self.speaker.send(f"at {what}"[:4000].encode(errors="replace"))
            while True:
                signal.pause()


def _become_firkin(
    request: Request, env: dict[str, str], counter: _Counter, who: str, alive: int
) -> None:
    status = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(env)
        _close_files(counter, alive)
        request.preserve_fds = 1
        message = ""
        if who == "child":
            stages._listen = lambda child: libc.listen(counter.kernel_call)
        elif who == "firkin":
            counter.owner = os.getpid()
            libc.listen(counter.kernel_call)
            sys.addaudithook(counter.audit)
        try:
            status = Run(request).run()
        except FirkinError as error:
            status, message = error.exit_status, str(error)
        except BaseException:
            message = traceback.format_exc()
        counter.on = False
        counter.speaker.send(f"end {message}"[:4000].encode(errors="replace"))
    finally:
        os._exit(status)


def _close_files(counter: _Counter, alive: int) -> None:
    """Leave descriptors 0 to 2, the pipe as 3, and what the counter speaks through."""
    high = fcntl.fcntl(counter.speaker.detach(), fcntl.F_DUPFD_CLOEXEC, 100)
    counter.speaker = socket.socket(fileno=high)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(alive, 3)
    os.closerange(4, high)
    os.closerange(high + 1, 4096)
    stages._NULL = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)  # this module's own is closed
