"""No cgroup: for an ordinary user to whom none was delegated, where no limit needs one."""

from __future__ import annotations

import os

from firkin.errors import Unsupported
from firkin.linux import libc
from firkin.runtime.cgroups.group import Stats

_PIDFD_SEND_SIGNAL = 424
_SIGKILL = 9


class NoCgroup:
    """The interface of :class:`~firkin.runtime.cgroups.group.Cgroup`, honest about what it lacks.

    Args:
        why: why there is no cgroup, for messages.
    """

    __slots__ = ("_process", "_why")

    def __init__(self, why: str) -> None:
        self._why = why
        self._process: int | None = None

    def check(self) -> None:
        """Nothing was asked for that could be refused."""

    def create(self) -> None:
        """Nothing to create."""

    def apply(self) -> None:
        """Nothing to set."""

    def apply_memory(self) -> None:
        """Nothing to set."""

    def join(self, pid: int) -> None:
        """Remember the container's first process, for :meth:`kill`."""
        self.close()
        self._process = libc.via(os.pidfd_open, pid)

    def entries(self) -> list[int]:
        """None."""
        return []

    def directory_fd(self) -> None:
        """None."""

    def paths(self) -> list[str]:
        """None: nothing to sweep."""
        return []

    def mounts(self, private: bool = True) -> list[tuple[str, str, str, str]]:
        """None: ``/sys/fs/cgroup`` stays empty."""
        return []

    def pids(self) -> set[int]:
        """Raises :class:`Unsupported`: only a cgroup knows all processes of a container."""
        raise Unsupported("cannot list the container's processes", self._why)

    def kill(self) -> None:
        """Kill the process that joined.

        With a pid namespace of its own that ends the whole container; without one
        the processes that it started live on.
        """
        if self._process is not None:
            try:
                libc.syscall("pidfd_send_signal", _PIDFD_SEND_SIGNAL, self._process, _SIGKILL, 0, 0)
            except ProcessLookupError:
                return  # ended by itself

    def freeze(self) -> None:
        """Raises :class:`Unsupported`."""
        raise Unsupported("cannot freeze the container", self._why)

    def thaw(self) -> None:
        """Raises :class:`Unsupported`."""
        raise Unsupported("cannot thaw the container", self._why)

    def stats(self) -> Stats:
        """Nothing is counted."""
        return Stats(None, None, None)

    def delegate(self, uid: int) -> None:
        """Nothing to give away."""

    def remove(self) -> None:
        """Let go of the process."""
        self.close()

    def close(self) -> None:
        """Close the descriptors held."""
        if self._process is not None:
            os.close(self._process)
            self._process = None
