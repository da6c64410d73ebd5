"""Word of the out-of-memory killer in a container, as soon as the kernel has it.

v1: an eventfd that ``cgroup.event_control`` ties to ``memory.oom_control`` (cgroup-v1's
memory.rst, chapter 10). v2: inotify(7) on ``memory.events`` and ``cgroup.events``
(cgroup-v2.rst: "file modified event").
"""

from __future__ import annotations

import errno
import os

from firkin.runtime.cgroups import tree
from firkin.runtime.cgroups.directory import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.runtime.cgroups.group import Cgroup


class Watcher:
    """One container's out-of-memory events; made by :func:`watch`.

    Attributes:
        fd: readable when there is something to read; see :meth:`read`.
    """

    __slots__ = ("_path", "fd")

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self.fd = fd

    def fileno(self) -> int:
        """For select(2) and poll(2)."""
        return self.fd

    def read(self) -> str:
        """What has happened since the last call; does not wait.

        Returns:
            ``"oom"``: a process was killed, or waits, for want of memory, perhaps more than
            one; ``"gone"``: the cgroup is removed, or nothing runs in it any more on v2;
            ``""``: neither.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Stop watching."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _WatcherV1(Watcher):
    __slots__ = ()

    def read(self) -> str:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return ""
        # The kernel signals the removal of the cgroup in the same way.
        return "oom" if os.path.exists(self._path) else "gone"


class _WatcherV2(Watcher):
    __slots__ = ("_kills",)

    def __init__(self, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self._kills = _count(path, "memory.events", "oom_kill")

    def read(self) -> str:
        try:
            os.read(self.fd, _EVENT)  # says only that a file has changed
        except BlockingIOError:
            return ""
        kills = _count(self._path, "memory.events", "oom_kill")
        if kills > self._kills:
            self._kills = kills
            return "oom"
        return "" if _count(self._path, "cgroup.events", "populated") else "gone"


def watch(cgroup: Cgroup) -> Watcher | None:
    """Watch *cgroup*; None where it has no memory controller.

    Raises:
        Unsupported: this user may not.
        SetupError: the kernel refuses, or the cgroup is gone.
    """
    home = cgroup.home("memory")
    if home is None:
        return None
    try:
        if home.hierarchy.version == 1:
            return _WatcherV1(home.path, _eventfd(home.path))
        return _WatcherV2(home.path, _inotify(home.path))
    except OSError as error:
        raise refused(f"cannot watch the memory of cgroup {home.path}", error) from error


def _eventfd(path: str) -> int:
    control = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            event = os.open(f"{path}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(event, f"{fd} {control}".encode())
            finally:
                os.close(event)
        except OSError:
            os.close(fd)
            raise
    finally:
        os.close(control)  # the kernel has its own hold on it
    return fd


# include/uapi/linux/inotify.h: the flag, and sizeof(struct inotify_event). One event is read
# at a time, so that a kill and the end, both there at once, are told by two calls.
_IN_MODIFY, _EVENT = 2, 16


def _inotify(path: str) -> int:
    import ctypes

    from firkin.linux import libc

    start = libc.function("inotify_init1", ctypes.c_int)
    add = libc.function(
        "inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, restype=ctypes.c_int
    )
    fd = libc.call("inotify_init1", start, os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for name in ("memory.events", "cgroup.events"):
            file = f"{path}/{name}"
            libc.call("inotify_add_watch", add, fd, os.fsencode(file), _IN_MODIFY, path=file)
    except OSError:
        os.close(fd)
        raise
    return fd


def _count(path: str, file: str, word: str) -> int:
    """The number after *word*, 0 where the cgroup is gone."""
    try:
        return tree.count(path, file, word, below=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return 0
        raise
