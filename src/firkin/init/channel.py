"""What parent and child say to each other, and when.

One ``SOCK_SEQPACKET`` socket pair, closed on exec: a message is a datagram, so
none is ever half read, and the end of the file means that the other side is
gone, or, after GO, that ``execve`` succeeded.

::

    parent                                    child
      │ clone ───────────────────────────────▶ │  (unshares what needs no rights)
      │ rlimits raised, oom_score_adj,         │
      │ cgroup joined, id maps written         │
      │ START ───────────────────────────────▶ │  joins namespaces
      │ ◀──────────────────── FORKED (pidfd)   │  only when it joined some: the
      │ id maps of the second child            │  bridge clones the real child and
      │ MAPPED ──────────────────────────────▶ │  ends
      │ ◀──────────────────── CONSOLE (pty)    │  with a terminal
      │ ◀──────────────────── HOOKS            │  the root stands, before the pivot;
      │ HOOKED ──────────────────────────────▶ │  only when there are hooks to run
      │ ◀──────────────────── READY            │  only credentials and exec remain
      │ memory limit, last of all              │
      │ GO ──────────────────────────────────▶ │  drops its rights, execve
      │ ◀──────────────────── LISTENER (fd)    │  only of a seccomp filter that asks
      │ LISTENED ────────────────────────────▶ │  someone; the agent has it now
      │ ◀──────────────────── CREATED          │  only of an OCI container, which now
      │                                        │  waits on a FIFO, and for nobody else
      │ ◀──────────────────── end of file      │
      │
      │ ◀──────────────────── DEBUG            at any time: one kernel call, explained
      │ ◀──────────────────── ERROR            at any time: the child then ends

The parent reads what comes and refuses what is out of order. ERROR carries
step, errno, path and text.
"""

from __future__ import annotations

# _socket rather than socket: the latter imports enum and selectors (6 ms).
import _socket
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

START = b"S"
FORKED = b"F"
MAPPED = b"M"
CONSOLE = b"P"
READY = b"R"
HOOKS = b"H"
HOOKED = b"h"
GO = b"G"
LISTENER = b"L"
LISTENED = b"l"
CREATED = b"C"
DEBUG = b"D"
ERROR = b"E"

_AF_UNIX = 1
_SOCK_SEQPACKET = 5
_SOCK_CLOEXEC = 0o2000000
_SOL_SOCKET = 1
_SCM_RIGHTS = 1
_MAX_MESSAGE = 65536


class ChannelError(Exception):
    """A message came out of order, or the other side is gone."""


class Channel:
    """One end of the pair."""

    __slots__ = ("_socket",)

    def __init__(self, socket: socket) -> None:
        self._socket = socket

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, kind: bytes, *fields: str, fds: tuple[int, ...] = ()) -> None:
        """Send one message, with descriptors if there are any.

        Raises:
            OSError: EPIPE when the other side is gone.
        """
        data = kind + b"\0".join(f.encode("utf-8", "surrogateescape") for f in fields)
        ancillary = []
        if fds:
            packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
            ancillary = [(_SOL_SOCKET, _SCM_RIGHTS, packed)]
        # MSG_NOSIGNAL is 0x4000: a dead parent is an error, not a signal.
        if not self._socket.sendmsg([data[:_MAX_MESSAGE]], ancillary, 0x4000):
            # A seccomp filter can answer 0 in the kernel's place; the other side would wait.
            raise OSError(errno.EPERM, "the seccomp filter answers in sendmsg's place")

    def receive(self) -> tuple[bytes, list[str], list[int]]:
        """Wait for one message.

        Returns:
            (kind, fields, descriptors); kind is ``b""`` at the end of the file.
        """
        try:
            data, ancillary = self._receive()
        except ConnectionResetError:
            # The other side ended without reading all; what it said is still to be read.
            data, ancillary = self._receive()
        fds = [
            int.from_bytes(packed[i : i + 4], sys.byteorder)
            for _level, _kind, packed in ancillary
            for i in range(0, len(packed) - 3, 4)
        ]
        if not data:
            return b"", [], fds
        text = data[1:].decode("utf-8", "surrogateescape")
        return data[:1], text.split("\0") if text else [], fds

    def _receive(self) -> tuple[bytes, list[Any]]:
        return self._socket.recvmsg(
            _MAX_MESSAGE,
            _socket.CMSG_SPACE(16),
            0x40000000,  # MSG_CMSG_CLOEXEC
        )[:2]

    def expect(self, kind: bytes) -> list[str]:
        """Wait for a message of *kind* and return its fields.

        Raises:
            ChannelError: another one came, or the end of the file.
        """
        received, fields, fds = self.receive()
        for fd in fds:
            os.close(fd)
        if received != kind:
            raise ChannelError(f"expected {kind!r}, got {received!r}")
        return fields


def pair() -> tuple[Channel, Channel]:
    """Make a channel; return the parent's end and the child's."""
    parent, child = _socket.socketpair(_AF_UNIX, _SOCK_SEQPACKET | _SOCK_CLOEXEC, 0)
    return Channel(parent), Channel(child)
