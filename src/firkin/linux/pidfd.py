"""What a pidfd gives beside signals: another process's descriptors.

Source: pidfd_getfd(2).
"""

from __future__ import annotations

from firkin.linux import libc

# The same number on every architecture, as for all calls since Linux 5.1.
_SYS_PIDFD_GETFD = 438


def get_fd(pidfd: int, number: int) -> int:
    """Return a copy of the descriptor *number* of another process, closed on exec.

    Raises:
        OSError: EPERM for one who may not trace that process, EBADF where it has no such
            descriptor.
    """
    return libc.syscall("pidfd_getfd", _SYS_PIDFD_GETFD, pidfd, number, 0)
